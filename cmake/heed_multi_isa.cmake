# heed_add_multi_isa(<name> SOURCES <file>... ENTRIES <symbol>... [LINK <library>...])
#
# Makes the static library <name> from SOURCES compiled once for each instruction set (x86-64: SSE2, AVX2 with FMA and
# F16C, AVX-512; elsewhere: once, for the compiler's default, which is NEON on 64-bit ARM). ENTRIES are the functions
# that the rest of the program calls, all extern "C"; a call goes to the best version for the machine it runs on.
#
#   kernels.cpp     extern "C" void attend(const float* q, …) { heed::attention(…); }
#   CMakeLists.txt  heed_add_multi_isa(kernels SOURCES kernels.cpp ENTRIES attend LINK heed::heed)
#                   target_link_libraries(app PRIVATE kernels)
#
# <name>_isa(), extern "C" too, returns the choice: "sse2", "avx2", "avx512" or "default". The environment variable
# HEED_ISA lowers it, to one of these names, for tests and comparisons.
#
# The trap. heed's kernels are templates on the xsimd architecture, so versions for different machines have different
# names. The rest of what they call does not: std::vector's members, Eigen's, any inline function. Each version of the
# object holds its own copy, compiled with its own flags, and the linker keeps one of them for the whole program, maybe
# AVX-512's, on a machine that has none. It crashes far from here, and not on the developer's machine. So nothing but
# the entries may leave an object:
#   1. ld -r --force-group-allocation makes one object per instruction set and dissolves its COMDAT groups, by which
#      the linker would match the copies with those of other objects even where their symbols are local;
#   2. objcopy makes every symbol that it defines local, except for the entries, which get the instruction set's suffix.
#      (-fno-gnu-unique, because unique symbols refuse to become local; -fno-lto, because neither tool reads that.)
# What remains undefined in the object comes from shared libraries or from baseline code. One consequence: static
# variables of inline functions exist once per instruction set. Exceptions cross as usual, types being compared by name.
#
# A second, smaller one: initialisers of static variables run before main on every machine, whichever version they are
# compiled for. Those of the AVX versions are moved to a section of their own and run only if theirs is chosen.
#
# The choice. Every entry is a jump through a pointer that starts at the SSE2 version and is set to the best one by a
# constructor, before main. Calls made even earlier are thus right too, only slower. A jump needs no signature, and
# unlike an ifunc it can read the environment and works with the sanitizers and any libc.

function(heed_add_multi_isa name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;ENTRIES;LINK")
  if(NOT arg_SOURCES OR NOT arg_ENTRIES OR arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "heed_add_multi_isa(<name> SOURCES <file>... ENTRIES <symbol>... [LINK <library>...])")
  endif()

  string(MAKE_C_IDENTIFIER ${name} identifier)
  if(NOT identifier STREQUAL name)
    message(FATAL_ERROR "heed_add_multi_isa: ${name} becomes a part of symbols, so it has to be a C identifier")
  endif()

  set(dispatcher ${CMAKE_CURRENT_BINARY_DIR}/${name}_dispatch.cpp)
  if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    file(CONFIGURE OUTPUT ${dispatcher} @ONLY
         CONTENT "extern \"C\" const char* @name@_isa() { return \"default\"; }\n")
    add_library(${name} STATIC ${arg_SOURCES} ${dispatcher})
    target_link_libraries(${name} PUBLIC ${arg_LINK})
    return()
  endif()

  set(flags_sse2 -march=x86-64)
  set(flags_avx2 ${flags_sse2} -mavx2 -mfma -mf16c)
  set(flags_avx512 ${flags_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512cd)

  set(objects "")
  foreach(isa sse2 avx2 avx512)
    set(part ${name}_${isa})
    add_library(${part} OBJECT ${arg_SOURCES})
    target_link_libraries(${part} PRIVATE ${arg_LINK})
    set_target_properties(${part} PROPERTIES POSITION_INDEPENDENT_CODE ON)
    target_compile_options(${part} PRIVATE ${flags_${isa}} -fno-lto $<$<CXX_COMPILER_ID:GNU>:-fno-gnu-unique>)

    set(object ${CMAKE_CURRENT_BINARY_DIR}/${part}.o)
    set(renames "")
    set(keeps "")
    if(NOT isa STREQUAL sse2)
      set(renames --rename-section .init_array=${name}_${isa}_init)
    endif()
    foreach(entry IN LISTS arg_ENTRIES)
      list(APPEND renames --redefine-sym ${entry}=${entry}__${isa})
      list(APPEND keeps --keep-global-symbol=${entry}__${isa})
    endforeach()
    add_custom_command(
      OUTPUT ${object}
      COMMAND ${CMAKE_LINKER} -r --force-group-allocation -o ${object} $<TARGET_OBJECTS:${part}>
      COMMAND ${CMAKE_OBJCOPY} ${renames} ${object}
      COMMAND ${CMAKE_OBJCOPY} ${keeps} ${object}  # GNU's and LLVM's differ on which names they mean if done in one
      DEPENDS ${part} $<TARGET_OBJECTS:${part}>
      COMMENT "Closing ${part}.o: only its entries stay visible" COMMAND_EXPAND_LISTS VERBATIM)
    list(APPEND objects ${object})
  endforeach()

  # Per entry: its versions, the pointer and the jump; and the line of the constructor that chooses.
  set(jumps "")
  set(choices "")
  foreach(entry IN LISTS arg_ENTRIES)
    string(CONFIGURE [[
void @entry@__sse2();
void @entry@__avx2();
void @entry@__avx512();
__attribute__((visibility("hidden"), used)) void (*@entry@__best)() = @entry@__sse2;
asm(".pushsection .text\n"
    ".globl @entry@\n"
    ".type @entry@, @function\n"
    "@entry@:\n"
    "  endbr64\n"
    "  jmp *@entry@__best(%rip)\n"
    ".size @entry@, .-@entry@\n"
    ".popsection\n");

]] jump @ONLY)
    string(APPEND jumps "${jump}")
    string(APPEND choices "  ${entry}__best = isa == 2 ? ${entry}__avx512 : isa == 1 ? ${entry}__avx2 : ${entry}__sse2;\n")
  endforeach()
  string(CONFIGURE [[
// Written by heed_add_multi_isa.
#include <cpuid.h>
#include <cstdlib>
#include <cstring>

extern "C" {
typedef void initialiser(int, char**, char**);
// The linker's names for the ends of a section, null if there is none.
extern initialiser* __start_@name@_avx2_init[] __attribute__((weak, visibility("hidden")));
extern initialiser* __stop_@name@_avx2_init[] __attribute__((weak, visibility("hidden")));
extern initialiser* __start_@name@_avx512_init[] __attribute__((weak, visibility("hidden")));
extern initialiser* __stop_@name@_avx512_init[] __attribute__((weak, visibility("hidden")));

@jumps@}

namespace {

const char* const names[] = {"sse2", "avx2", "avx512"};

int best() {
  __builtin_cpu_init();  // the answers below include whether the operating system saves the registers
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & (1u << 29));  // not every compiler has a name for it
  if (!(f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))) return 0;
  if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512cd")))
    return 1;
  return 2;
}

int choose() {
  const int most = best();
  if (const char* wish = std::getenv("HEED_ISA"))
    for (int isa = 0; isa < most; ++isa)
      if (std::strcmp(wish, names[isa]) == 0) return isa;
  return most;
}

int chosen = 0;

__attribute__((constructor)) void set(int argc, char** argv, char** environment) {
  const int isa = choose();
  initialiser** first = isa == 2 ? __start_@name@_avx512_init : isa == 1 ? __start_@name@_avx2_init : nullptr;
  initialiser** last = isa == 2 ? __stop_@name@_avx512_init : isa == 1 ? __stop_@name@_avx2_init : nullptr;
  for (; first != last; ++first) (*first)(argc, argv, environment);
  chosen = isa;
@choices@}

}  // namespace

extern "C" const char* @name@_isa() { return names[chosen]; }
]] content @ONLY)
  file(WRITE ${dispatcher}.new "${content}")
  file(COPY_FILE ${dispatcher}.new ${dispatcher} ONLY_IF_DIFFERENT)

  set_source_files_properties(${objects} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
  add_library(${name} STATIC ${dispatcher} ${objects})
  set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  target_compile_options(${name} PRIVATE ${flags_sse2} -fno-lto)  # neither may the compiler see through the jump
  target_link_libraries(${name} PUBLIC ${arg_LINK})
endfunction()
