# Each fuzz/*.cpp defines LLVMFuzzerTestOneInput and becomes build/fuzz/fuzz/<name>; its seeds are in fuzz/corpus/<name>/.
if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  message(FATAL_ERROR "UFFDA_FUZZ needs clang: use the preset 'fuzz'")
endif()
target_compile_options(uffda_options INTERFACE -fsanitize=fuzzer-no-link)

file(GLOB uffda_fuzzers CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/fuzz/*.cpp")
add_custom_target(fuzzers)
foreach(source IN LISTS uffda_fuzzers)
  get_filename_component(name "${source}" NAME_WE)
  if(NOT TARGET uffda_core)
    break()
  endif()
  add_executable(fuzz_${name} "${source}")
  target_link_libraries(fuzz_${name} PRIVATE uffda_options $<TARGET_NAME_IF_EXISTS:uffda_cli>
    $<TARGET_NAME_IF_EXISTS:uffda_server> uffda_core
    -fsanitize=fuzzer)
  set_target_properties(fuzz_${name} PROPERTIES OUTPUT_NAME "${name}"
    RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/fuzz")
  add_dependencies(fuzzers fuzz_${name})
endforeach()
