# Each bench/*.cpp is a program in build/<preset>/bench/; what they share stands in bench/common/.
find_package(benchmark QUIET)
uffda_library(uffda_bench_common bench/common)
if(TARGET uffda_bench_common)
  target_include_directories(uffda_bench_common PUBLIC "${PROJECT_SOURCE_DIR}/bench")
  target_link_libraries(uffda_bench_common PUBLIC $<TARGET_NAME_IF_EXISTS:uffda_core>
    PRIVATE nlohmann_json::nlohmann_json)
endif()

# A memory type that is a module, for what that costs a fault.
add_library(bench_module MODULE "${PROJECT_SOURCE_DIR}/modules/shelf.cpp")
target_include_directories(bench_module PRIVATE "${PROJECT_SOURCE_DIR}/include")
set_target_properties(bench_module PROPERTIES PREFIX "" OUTPUT_NAME shelf
  LIBRARY_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bench")

add_custom_target(benches DEPENDS bench_module)
file(GLOB uffda_benches CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/bench/*.cpp")
foreach(source IN LISTS uffda_benches)
  get_filename_component(name "${source}" NAME_WE)
  if(NOT TARGET uffda_core)
    break()
  endif()
  add_executable(bench_${name} "${source}")
  target_include_directories(bench_${name} PRIVATE "${PROJECT_SOURCE_DIR}/bench")
  target_link_libraries(bench_${name} PRIVATE uffda_options $<TARGET_NAME_IF_EXISTS:uffda_bench_common>
    $<TARGET_NAME_IF_EXISTS:uffda_server> uffda_core nlohmann_json::nlohmann_json
    PkgConfig::libzstd $<TARGET_NAME_IF_EXISTS:benchmark::benchmark>)
  set_target_properties(bench_${name} PROPERTIES OUTPUT_NAME "${name}"
    RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bench")
  add_dependencies(benches bench_${name})
endforeach()
