# Sources with a library of their own: build/<preset>/plugins/uffda-NAME.so from src/plugins/NAME (see
# src/sources/plugin.h). One whose library is missing is left out; UFFDA_PLUGINS_REQUIRED makes that an error.
option(UFFDA_PLUGINS_REQUIRED "Fail where the library of a plugin is missing" OFF)
add_custom_target(plugins)

# uffda_plugin(NAME PKGCONFIG...): what it links, as pkg-config modules.
function(uffda_plugin name)
  uffda_glob(sources src/plugins/${name})
  if(NOT sources OR NOT TARGET uffda_core)
    return()
  endif()
  set(libraries "")
  foreach(module IN LISTS ARGN)
    string(MAKE_C_IDENTIFIER "${module}" target)
    pkg_check_modules(${target} QUIET IMPORTED_TARGET ${module})
    if(NOT ${target}_FOUND)
      if(UFFDA_PLUGINS_REQUIRED)
        message(FATAL_ERROR "plugin ${name}: ${module} is missing: make setup installs it")
      endif()
      message(STATUS "plugin ${name}: ${module} is missing, left out")
      return()
    endif()
    list(APPEND libraries PkgConfig::${target})
  endforeach()
  add_library(plugin_${name} MODULE ${sources})
  target_link_libraries(plugin_${name} PRIVATE uffda_options uffda_core ${libraries})
  target_compile_options(plugin_${name} PRIVATE -fvisibility=hidden)
  target_link_options(plugin_${name} PRIVATE "LINKER:--version-script=${PROJECT_SOURCE_DIR}/src/plugins/plugin.map"
    LINKER:--as-needed)
  set_target_properties(plugin_${name} PROPERTIES PREFIX "" OUTPUT_NAME "uffda-${name}"
    LINK_DEPENDS "${PROJECT_SOURCE_DIR}/src/plugins/plugin.map"
    LIBRARY_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/plugins")
  add_dependencies(plugins plugin_${name})
  install(TARGETS plugin_${name} LIBRARY DESTINATION lib/uffda/plugins)
endfunction()
