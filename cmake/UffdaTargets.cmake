# One set of flags, and functions that make a target from the sources of directories. A directory without sources makes
# no target; globs are checked at every build, so adding a file needs no edit here.

set(CMAKE_CXX_STANDARD 23)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_CXX_SCAN_FOR_MODULES OFF)
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -g")  # without NDEBUG: assertions stay on in what ships
set(CMAKE_CXX_FLAGS_DEBUG "-Og -g")
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_UNITY_BUILD ${UFFDA_UNITY})  # two files' names in anonymous namespaces must differ
set(CMAKE_UNITY_BUILD_BATCH_SIZE 12)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE RelWithDebInfo)
endif()

# Warnings, of the shim too.
add_library(uffda_warnings INTERFACE)
target_compile_options(uffda_warnings INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion -Wnon-virtual-dtor -Woverloaded-virtual
  -Wformat=2 -Wundef -Wvla
  -Wno-missing-field-initializers  # members have initializers; designated ones name what differs
  $<$<CXX_COMPILER_ID:GNU>:-Wduplicated-cond -Wlogical-op>
  $<$<AND:$<CXX_COMPILER_ID:GNU>,$<BOOL:${UFFDA_UNITY}>>:-Wno-subobject-linkage>  # every source looks like a header
  # TRY is a statement expression; g++ accepts it through __extension__.
  $<$<CXX_COMPILER_ID:Clang>:-Wthread-safety -Werror=thread-safety -Wno-gnu-statement-expression>
  $<$<BOOL:${UFFDA_WERROR}>:-Werror>)

# What every target of ours is compiled with, except the shim.
add_library(uffda_options INTERFACE)
target_link_libraries(uffda_options INTERFACE uffda_warnings)
target_include_directories(uffda_options INTERFACE "${PROJECT_SOURCE_DIR}/src" "${PROJECT_SOURCE_DIR}/include")
target_compile_definitions(uffda_options INTERFACE
  _GNU_SOURCE SPDLOG_FMT_EXTERNAL "UFFDA_VERSION=\"${PROJECT_VERSION}\"")
target_compile_options(uffda_options INTERFACE -fvisibility-inlines-hidden)
if(UFFDA_SANITIZE)
  target_compile_options(uffda_options INTERFACE
    -fsanitize=${UFFDA_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -O1)
  target_link_options(uffda_options INTERFACE -fsanitize=${UFFDA_SANITIZE})
  target_compile_definitions(uffda_options INTERFACE "UFFDA_SANITIZED=1")
endif()

# uffda_glob(out DIR... [EXCLUDE name...]): the .cpp files of the directories and below, without files named in EXCLUDE.
function(uffda_glob out)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "EXCLUDE")
  set(found "")
  foreach(directory IN LISTS arg_UNPARSED_ARGUMENTS)
    file(GLOB_RECURSE files CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/${directory}/*.cpp")
    list(APPEND found ${files})
  endforeach()
  foreach(name IN LISTS arg_EXCLUDE)
    list(FILTER found EXCLUDE REGEX "/${name}$")
  endforeach()
  set(${out} "${found}" PARENT_SCOPE)
endfunction()

# uffda_library(target DIR... [EXCLUDE name...]): a static library.
function(uffda_library target)
  uffda_glob(sources ${ARGN})
  if(NOT sources)
    message(VERBOSE "${target}: no sources, left out")
    return()
  endif()
  add_library(${target} STATIC ${sources})
  target_link_libraries(${target} PUBLIC "$<BUILD_INTERFACE:uffda_options>")
endfunction()

# uffda_program(target FILE...): a program, left out while its first file or the library is missing.
function(uffda_program target main)
  file(GLOB found CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/${main}")
  if(NOT found OR NOT TARGET uffda_core)
    message(VERBOSE "${target}: no sources, left out")
    return()
  endif()
  add_executable(${target} "${PROJECT_SOURCE_DIR}/${main}" ${ARGN})
  target_link_libraries(${target} PRIVATE uffda_options)
endfunction()

# uffda_shim(target DIR): a shared object that needs libc and nothing else and exports what DIR/shim.map names. It is
# loaded into programs that are not ours, so: no C++ runtime, no sanitizer, nothing from the library.
function(uffda_shim target directory)
  uffda_glob(sources ${directory})
  file(GLOB map CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/${directory}/shim.map")
  if(NOT sources OR NOT map)
    message(VERBOSE "${target}: no sources, left out")
    return()
  endif()
  add_library(${target} SHARED ${sources})
  target_link_libraries(${target} PRIVATE uffda_warnings)
  target_include_directories(${target} PRIVATE "${PROJECT_SOURCE_DIR}/src")
  target_compile_definitions(${target} PRIVATE _GNU_SOURCE)
  target_compile_options(${target} PRIVATE
    -fno-exceptions -fno-rtti -fno-threadsafe-statics -fvisibility=hidden -ftls-model=initial-exec)
  target_link_options(${target} PRIVATE
    "LINKER:--version-script=${map}" LINKER:--no-undefined LINKER:-z,now LINKER:-z,relro LINKER:--as-needed)
  set_target_properties(${target} PROPERTIES
    UNITY_BUILD OFF
    LINKER_LANGUAGE C  # the C driver adds no libstdc++ (g++ 12 has no -nostdlib++)
    LINK_DEPENDS "${map}"
    LIBRARY_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}")
endfunction()
