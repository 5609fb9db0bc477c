# Building one source for several instruction sets and choosing among them at run time.
