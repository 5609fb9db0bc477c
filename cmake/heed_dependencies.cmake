# Finds what heed's headers include: Eigen >= 3.4, xsimd >= 8.1 and threads. Shared by the build and the installed package.
# Sets heed_missing to what was not found, empty if all is well.
#
# Versions are compared here and not by find_package: the config files of both libraries refuse any other major version
# than the one asked for, and heed works with several. A tree of headers without config files is found as well.

function(heed_find_headers target package minimum header suffix)
  find_package(${package} CONFIG QUIET)
  if(TARGET ${target})
    if(${package}_VERSION AND ${package}_VERSION VERSION_LESS minimum)
      set(heed_missing ${heed_missing} "${package} >= ${minimum} (found ${${package}_VERSION} in ${${package}_DIR})" PARENT_SCOPE)
    endif()
    return()
  endif()
  find_path(HEED_${package}_INCLUDE_DIR ${header} PATH_SUFFIXES ${suffix})
  if(NOT HEED_${package}_INCLUDE_DIR)
    set(heed_missing ${heed_missing} "${package} >= ${minimum}" PARENT_SCOPE)
    return()
  endif()
  add_library(${target} INTERFACE IMPORTED)
  target_include_directories(${target} INTERFACE ${HEED_${package}_INCLUDE_DIR})
endfunction()

set(heed_missing "")
heed_find_headers(Eigen3::Eigen Eigen3 3.4 Eigen/Core eigen3)
heed_find_headers(xsimd xsimd 8.1 xsimd/xsimd.hpp "")
if(TARGET xsimd AND NOT TARGET xtl)
  # Some builds of xsimd, Debian 12's for one, name an optional library that is not there. Headers link nothing.
  set_property(TARGET xsimd PROPERTY INTERFACE_LINK_LIBRARIES "")
endif()
find_package(Threads QUIET)
if(NOT TARGET Threads::Threads)
  list(APPEND heed_missing "a thread library")
endif()
list(JOIN heed_missing ", " heed_missing)
