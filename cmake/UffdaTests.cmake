# One program and one ctest entry per suite; scripts of tests/clients and tests/check are one entry each. A script that
# cannot run here says why on its last line and exits with 77. scripts/run-tests prints every skip with its reason.
enable_testing()
find_package(GTest REQUIRED)

# Helpers shared by the suites.
uffda_library(uffda_test_support tests/support)
if(TARGET uffda_test_support)
  target_include_directories(uffda_test_support PUBLIC "${PROJECT_SOURCE_DIR}/tests")
  target_compile_definitions(uffda_test_support PRIVATE "UFFDA_TEST_CLIENTS=\"${PROJECT_SOURCE_DIR}/tests/clients\"")
  target_link_libraries(uffda_test_support PUBLIC
    $<TARGET_NAME_IF_EXISTS:uffda_core> GTest::gtest GTest::gmock $<TARGET_NAME_IF_EXISTS:PkgConfig::libseccomp>)
endif()

# Modules that break their contract: build/<preset>/tests/modules/<name>.so. In C, against the one header.
file(GLOB hostile_modules CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/tests/hostile/modules/*.c")
add_custom_target(test_modules)
foreach(source IN LISTS hostile_modules)
  get_filename_component(name "${source}" NAME_WE)
  add_library(module_${name} MODULE "${source}")
  target_include_directories(module_${name} PRIVATE "${PROJECT_SOURCE_DIR}/include")
  target_compile_options(module_${name} PRIVATE -std=c11 -Wall -Wextra)
  set_target_properties(module_${name} PROPERTIES PREFIX "" OUTPUT_NAME "${name}"
    LIBRARY_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/tests/modules")
  add_dependencies(test_modules module_${name})
endforeach()

# What GoogleTest's macros make: nested lambdas that name `info`, an `else` behind `if (..) EXPECT_..`.
add_library(uffda_test_warnings INTERFACE)
target_compile_options(uffda_test_warnings INTERFACE -Wno-shadow -Wno-dangling-else)

# What .ci/run runs under the sanitizers.
add_custom_target(quick_tests)

foreach(suite IN ITEMS unit contract kernel conformance hostile regress)
  uffda_glob(sources tests/${suite})
  if(NOT sources OR NOT TARGET uffda_core)
    continue()
  endif()
  set(target uffda_${suite}_tests)
  add_executable(${target} ${sources})
  target_include_directories(${target} PRIVATE "${PROJECT_SOURCE_DIR}/tests")
  target_link_libraries(${target} PRIVATE uffda_options uffda_test_warnings
    $<TARGET_NAME_IF_EXISTS:uffda_test_support> $<TARGET_NAME_IF_EXISTS:uffda_cli>
    $<TARGET_NAME_IF_EXISTS:uffda_server> uffda_core
    $<TARGET_NAME_IF_EXISTS:PkgConfig::libseccomp> GTest::gmock GTest::gtest_main)
  set_target_properties(${target} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/tests")
  add_dependencies(${target} test_modules plugins)
  if(suite MATCHES "^(unit|contract)$")
    add_dependencies(quick_tests ${target})
  endif()
  add_test(NAME ${suite} COMMAND ${target} --gtest_brief=1)
  set_tests_properties(${suite} PROPERTIES LABELS ${suite} TIMEOUT 1200
    ENVIRONMENT "UFFDA=$<IF:$<TARGET_EXISTS:uffda>,${PROJECT_BINARY_DIR}/uffda,>;UFFDA_TEST_MODULES=${PROJECT_BINARY_DIR}/tests/modules;UFFDA_PLUGINS=${PROJECT_BINARY_DIR}/plugins")
endforeach()

# The programs that the scripts of tests/clients run, in build/<preset>/tests/clients/: one for each name.cpp, of which
# name_*.cpp are parts.
file(GLOB client_sources CONFIGURE_DEPENDS
  "${PROJECT_SOURCE_DIR}/tests/clients/*.cpp" "${PROJECT_SOURCE_DIR}/tests/clients/*.c")
set(client_programs "")
foreach(source IN LISTS client_sources)
  get_filename_component(name "${source}" NAME_WE)
  set(program "${name}")
  foreach(other IN LISTS client_sources)
    get_filename_component(other_name "${other}" NAME_WE)
    if(name MATCHES "^${other_name}_")
      set(program "${other_name}")
    endif()
  endforeach()
  list(APPEND client_programs ${program})
  list(APPEND client_parts_${program} "${source}")
endforeach()
list(REMOVE_DUPLICATES client_programs)
if(UFFDA_SANITIZE)
  set(client_programs "")  # nothing runs them there
endif()
foreach(name IN LISTS client_programs)
  add_executable(client_${name} ${client_parts_${name}})
  target_include_directories(client_${name} PRIVATE "${PROJECT_SOURCE_DIR}/tests")
  target_link_libraries(client_${name} PRIVATE uffda_options $<TARGET_NAME_IF_EXISTS:uffda_server>
    $<TARGET_NAME_IF_EXISTS:uffda_core> PkgConfig::liburing $<TARGET_NAME_IF_EXISTS:PkgConfig::libseccomp>
    Threads::Threads ${CMAKE_DL_LIBS})
  target_link_options(client_${name} PRIVATE LINKER:--as-needed)
  set_target_properties(client_${name} PROPERTIES OUTPUT_NAME "${name}"
    RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/tests/clients")
endforeach()

# The example that scripts of tests/clients restore virtual machines with.
if(NOT UFFDA_SANITIZE AND CMAKE_SYSTEM_PROCESSOR STREQUAL "x86_64")
  file(GLOB kvm_restore_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/examples/kvm-restore/*.cpp")
  add_executable(client_kvm_restore ${kvm_restore_sources})
  target_link_libraries(client_kvm_restore PRIVATE uffda_options)
  set_target_properties(client_kvm_restore PROPERTIES OUTPUT_NAME kvm-restore UNITY_BUILD OFF
    RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/tests/clients")
endif()

# The core once more, over the simulated kernel, clock, threads and locks of tests/sim. What of it needs the real ones
# (fault loops) is compiled and never linked.
if(NOT UFFDA_SANITIZE)
  uffda_library(uffda_simulated_core src/base src/mm src/memtypes EXCLUDE log.cpp hugetlb.cpp guest_memfd.cpp)
endif()
if(TARGET uffda_simulated_core)
  target_sources(uffda_simulated_core PRIVATE "${PROJECT_SOURCE_DIR}/src/os/clock.cpp")
  target_compile_definitions(uffda_simulated_core PUBLIC UFFDA_SIMULATED)
  set_target_properties(uffda_simulated_core PROPERTIES UNITY_BUILD OFF)  # what is not simulated must stay out
  target_include_directories(uffda_simulated_core PUBLIC "${PROJECT_SOURCE_DIR}/tests")
  target_link_libraries(uffda_simulated_core PUBLIC fmt::fmt Threads::Threads)
  uffda_glob(sources tests/sim)
  add_executable(uffda_sim ${sources})
  target_link_libraries(uffda_sim PRIVATE uffda_options uffda_simulated_core)
  set_target_properties(uffda_sim PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/tests")
  add_test(NAME sim COMMAND uffda_sim --seeds 5000 --jobs 2)
  set_tests_properties(sim PROPERTIES LABELS sim TIMEOUT 300)

  # The simulated kernel beside the real one, by the scripts of the conformance suite. The core is not in it.
  uffda_glob(sources tests/sim_conformance)
  foreach(file IN ITEMS conformance/runner conformance/script conformance/real_world conformance/world_kernel
      sim/scheduler sim/kernel sim/fault sim/userfault sim/resolve)
    list(APPEND sources "${PROJECT_SOURCE_DIR}/tests/${file}.cpp")
  endforeach()
  add_executable(uffda_sim_conformance_tests ${sources})
  target_include_directories(uffda_sim_conformance_tests PRIVATE "${PROJECT_SOURCE_DIR}/tests")
  target_link_libraries(uffda_sim_conformance_tests PRIVATE uffda_options uffda_test_warnings uffda_core
    GTest::gtest_main)
  set_target_properties(uffda_sim_conformance_tests PROPERTIES
    RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/tests")
  add_test(NAME sim_conformance COMMAND uffda_sim_conformance_tests --gtest_brief=1)
  set_tests_properties(sim_conformance PROPERTIES LABELS sim TIMEOUT 600)
endif()

# uffda_script_tests(DIR LABEL TIMEOUT): one entry per executable script of the directory; lib.sh and files that
# start with an underscore are helpers.
function(uffda_script_tests directory label timeout)
  file(GLOB scripts CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/${directory}/*.sh")
  foreach(script IN LISTS scripts)
    get_filename_component(name "${script}" NAME_WE)
    if(name STREQUAL "lib" OR name MATCHES "^_")
      continue()
    endif()
    add_test(NAME ${label}.${name} COMMAND bash "${script}" WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
    set_tests_properties(${label}.${name} PROPERTIES LABELS ${label} TIMEOUT ${timeout} SKIP_RETURN_CODE 77
      ENVIRONMENT "UFFDA=${PROJECT_BINARY_DIR}/uffda;UFFDA_BUILD=${PROJECT_BINARY_DIR}")
  endforeach()
endfunction()

# The command under a sanitizer is slower than its time limits allow for; the scripts run what ships.
if(NOT UFFDA_SANITIZE)
  uffda_script_tests(tests/clients clients 300)
  uffda_script_tests(tests/check check 300)
  uffda_script_tests(tests/sim sim 300)
endif()
