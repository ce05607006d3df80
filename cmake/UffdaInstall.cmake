# An installed tree: bin/uffda, lib/uffda/libuffda-shim.so (the command looks for it in ../lib/uffda of itself), the
# headers, the library, the example modules, and what find_package(uffda) and pkg-config need.
include(CMakePackageConfigHelpers)

set(uffda_cmake_dir "${CMAKE_INSTALL_LIBDIR}/cmake/uffda")

if(TARGET uffda)
  install(TARGETS uffda RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
endif()
if(TARGET uffda)
  # Units of systemd, in the directory that it looks into for those of packages.
  set(UFFDA_BIN "${CMAKE_INSTALL_FULL_BINDIR}")
  configure_file("${PROJECT_SOURCE_DIR}/contrib/systemd/uffda@.service.in"
    "${PROJECT_BINARY_DIR}/contrib/uffda@.service" @ONLY)
  install(FILES "${PROJECT_BINARY_DIR}/contrib/uffda@.service" "${PROJECT_SOURCE_DIR}/contrib/systemd/uffda@.socket"
    "${PROJECT_SOURCE_DIR}/contrib/systemd/uffda-firecracker@.socket" DESTINATION lib/systemd/system)
endif()
if(TARGET uffda-shim)
  install(TARGETS uffda-shim LIBRARY DESTINATION lib/uffda)
endif()
if(TARGET uffda_core)
  set_target_properties(uffda_core PROPERTIES OUTPUT_NAME uffda EXPORT_NAME uffda)
  add_library(uffda::uffda ALIAS uffda_core)
  install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}"
    FILES_MATCHING PATTERN "*.h")
  install(DIRECTORY "${PROJECT_SOURCE_DIR}/modules/" DESTINATION "${CMAKE_INSTALL_DATADIR}/uffda/modules")
  install(TARGETS uffda_core EXPORT uffda-targets ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}")
  install(EXPORT uffda-targets NAMESPACE uffda:: DESTINATION "${uffda_cmake_dir}")
  configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/uffda-config.cmake.in"
    "${PROJECT_BINARY_DIR}/cmake/uffda-config.cmake" INSTALL_DESTINATION "${uffda_cmake_dir}")
  write_basic_package_version_file("${PROJECT_BINARY_DIR}/cmake/uffda-config-version.cmake"
    COMPATIBILITY SameMinorVersion)
  install(FILES "${PROJECT_BINARY_DIR}/cmake/uffda-config.cmake"
    "${PROJECT_BINARY_DIR}/cmake/uffda-config-version.cmake" DESTINATION "${uffda_cmake_dir}")
  # Relative, so that an installed tree may be moved.
  file(RELATIVE_PATH uffda_pc_to_prefix "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
  configure_file("${PROJECT_SOURCE_DIR}/cmake/uffda.pc.in" "${PROJECT_BINARY_DIR}/cmake/uffda.pc" @ONLY)
  install(FILES "${PROJECT_BINARY_DIR}/cmake/uffda.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
endif()
