# From a bare Debian or Ubuntu to a built tree; sourced by tests/run, bench/run and examples/run, which set $top.
# POSIX sh. Whatever it says goes to stderr, so that a program's output stays its own.
#
#   heed_need PACKAGE...                  installs what is missing, or says what is missing and stops
#   heed_want PACKAGE...                  the same for what one can do without: never stops
#   heed_build PURPOSE TARGET OPTION...   configures build/PURPOSE with cmake's OPTIONs and builds TARGET
#
# HEED_CMAKE_FLAGS holds further options for every configuration: HEED_CMAKE_FLAGS="-DHEED_WERROR=ON" ./tests/run

heed_say() { printf 'heed: %s\n' "$*" >&2; }

# What shows that a package is there: a command or a header. Asking for these rather than for the package accepts
# what was installed by other means. Prints the names of the missing.
heed_missing() {
  compiler=${CXX:-c++}
  headers=
  for package; do
    case $package in
      g++) command -v "$compiler" >/dev/null || { echo g++; compiler=; } ;;
      ninja-build) command -v ninja >/dev/null || echo ninja-build ;;
      libeigen3-dev) headers="$headers $package:eigen3/Eigen/Core" ;;
      libxsimd-dev) headers="$headers $package:xsimd/xsimd.hpp" ;;
      libbenchmark-dev) headers="$headers $package:benchmark/benchmark.h" ;;
      libopenblas-dev) headers="$headers $package:cblas.h" ;;
      catch2) headers="$headers $package:catch2/catch.hpp $package:catch2/catch_all.hpp" ;;
      *) command -v "$package" >/dev/null || echo "$package" ;;
    esac
  done
  # One run of the preprocessor answers for all headers: it prints the packages that have one.
  present=
  if [ -n "$compiler" ] && [ -n "$headers" ]; then
    present=$(for pair in $headers; do
      printf '#if __has_include(<%s>)\n%s\n#endif\n' "${pair#*:}" "${pair%%:*}"
    done | $compiler -E -P -x c++ - 2>/dev/null) || present=
  fi
  for package in $(for pair in $headers; do echo "${pair%%:*}"; done | uniq); do
    case " $(echo $present) " in *" $package "*) ;; *) echo "$package" ;; esac
  done
}

heed_apt() {
  if [ "$(id -u)" = 0 ]; then sudo=; else sudo=sudo; fi
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@" </dev/null >&2
}

heed_install() {
  command -v apt-get >/dev/null || return 1
  [ "$(id -u)" = 0 ] || command -v sudo >/dev/null || return 1
  heed_say "installing $*"
  # Lists that cannot be refreshed may still do.
  heed_apt update || :
  heed_apt install -y --no-install-recommends "$@"
}

heed_need() {
  missing=$(echo $(heed_missing "$@"))
  [ -n "$missing" ] || return 0
  heed_install $missing && missing=$(echo $(heed_missing "$@"))
  [ -n "$missing" ] || return 0
  heed_say "these packages are missing and could not be installed (that takes apt, and root or sudo): $missing"
  exit 1
}

heed_want() {
  missing=$(echo $(heed_missing "$@"))
  [ -z "$missing" ] || heed_install $missing || heed_say "going on without $missing"
}

heed_build() {
  purpose=$1 target=$2
  shift 2
  folder=$top/build/$purpose
  # Configured once, and again when the options, the compiler or the place of the tree change.
  options="$top ${CXX:-c++} $* ${HEED_CMAKE_FLAGS:-}"
  if [ ! -f "$folder/build.ninja" ] || [ "$options" != "$(cat "$folder/options" 2>/dev/null)" ]; then
    heed_say "configuring build/$purpose"
    rm -rf "$folder/CMakeCache.txt" "$folder/CMakeFiles"
    cmake -S "$top" -B "$folder" -G Ninja "$@" ${HEED_CMAKE_FLAGS:-} >&2 || exit
    echo "$options" >"$folder/options"
  fi
  heed_say "building build/$purpose"
  cmake --build "$folder" --target "$target" --parallel "${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}" >&2 || exit
}

heed_base="g++ cmake ninja-build libeigen3-dev libxsimd-dev"
