# Finds what heed's headers include: Eigen >= 3.4, xsimd >= 8.1 and threads. Shared by the build and the installed package.
# Sets heed_missing to what was not found, empty if all is well.
#
# Eigen's version is compared here and not by find_package, because its config file refuses any other major version than
# the one asked for, and heed works with several. xsimd is found by its headers alone: the config files that Debian ships
# want an optional library that need not be there. A tree of Eigen's headers without a config file is found as well.
# CMAKE_PREFIX_PATH leads to either.

set(heed_missing "")

find_package(Eigen3 CONFIG QUIET)
if(NOT TARGET Eigen3::Eigen)
  find_path(HEED_EIGEN_INCLUDE_DIR Eigen/Core PATH_SUFFIXES eigen3)
  if(HEED_EIGEN_INCLUDE_DIR)
    add_library(Eigen3::Eigen INTERFACE IMPORTED)
    target_include_directories(Eigen3::Eigen INTERFACE ${HEED_EIGEN_INCLUDE_DIR})
  endif()
endif()
if(NOT TARGET Eigen3::Eigen OR (Eigen3_VERSION AND Eigen3_VERSION VERSION_LESS 3.4))
  list(APPEND heed_missing "Eigen >= 3.4")
endif()

if(NOT TARGET xsimd)
  find_path(HEED_XSIMD_INCLUDE_DIR xsimd/xsimd.hpp)
  set(heed_xsimd_version none)
  if(HEED_XSIMD_INCLUDE_DIR)
    file(STRINGS ${HEED_XSIMD_INCLUDE_DIR}/xsimd/config/xsimd_config.hpp heed_xsimd_version REGEX "define XSIMD_VERSION_M")
    string(REGEX REPLACE "[^0-9]+" "." heed_xsimd_version "0${heed_xsimd_version}")
    string(REGEX REPLACE "^0\\." "" heed_xsimd_version "${heed_xsimd_version}")
    add_library(xsimd INTERFACE IMPORTED)
    target_include_directories(xsimd INTERFACE ${HEED_XSIMD_INCLUDE_DIR})
  endif()
  if(heed_xsimd_version VERSION_LESS 8.1)
    list(APPEND heed_missing "xsimd >= 8.1 (found: ${heed_xsimd_version})")
  endif()
endif()

find_package(Threads QUIET)
if(NOT TARGET Threads::Threads)
  list(APPEND heed_missing "a thread library")
endif()
list(JOIN heed_missing " and " heed_missing)
