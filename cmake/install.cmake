# Installs the headers, the CMake package and heed.pc. All of it is independent of the machine, hence share/.
include(CMakePackageConfigHelpers)

set(heed_cmake_dir ${CMAKE_INSTALL_DATADIR}/cmake/heed)
configure_file(cmake/heed.pc.in heed.pc @ONLY)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/heed-config-version.cmake
                                 COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)

install(TARGETS heed EXPORT heed)
install(EXPORT heed FILE heed-targets.cmake NAMESPACE heed:: DESTINATION ${heed_cmake_dir})
install(DIRECTORY include/heed TYPE INCLUDE FILES_MATCHING PATTERN "*.hpp")
install(FILES cmake/heed-config.cmake cmake/heed_dependencies.cmake cmake/heed_multi_isa.cmake
              ${PROJECT_BINARY_DIR}/heed-config-version.cmake
        DESTINATION ${heed_cmake_dir})
install(FILES ${PROJECT_BINARY_DIR}/heed.pc DESTINATION ${CMAKE_INSTALL_DATADIR}/pkgconfig)
