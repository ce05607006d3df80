# uffda_protobuf(TARGET FILE): a library of what protoc makes of FILE, whose directory is where NAME.pb.h is found. Its
# code is not ours: no warnings.
find_package(Protobuf REQUIRED)
find_library(UFFDA_PROTOBUF_LITE NAMES libprotobuf-lite.a protobuf-lite REQUIRED)  # static: loading costs every start
function(uffda_protobuf target file)
  get_filename_component(name "${file}" NAME_WE)
  get_filename_component(parent "${PROJECT_SOURCE_DIR}/${file}" DIRECTORY)
  set(directory "${PROJECT_BINARY_DIR}/protobuf/${target}")
  file(MAKE_DIRECTORY "${directory}")
  add_custom_command(OUTPUT "${directory}/${name}.pb.cc" "${directory}/${name}.pb.h"
    COMMAND protobuf::protoc --cpp_out "${directory}" --proto_path "${parent}"
      "${PROJECT_SOURCE_DIR}/${file}"
    DEPENDS "${PROJECT_SOURCE_DIR}/${file}" VERBATIM)
  add_library(${target} STATIC "${directory}/${name}.pb.cc")
  target_include_directories(${target} SYSTEM PUBLIC "${directory}")
  target_compile_options(${target} PRIVATE -w)
  target_link_libraries(${target} PUBLIC "${UFFDA_PROTOBUF_LITE}" Threads::Threads)
  set_target_properties(${target} PROPERTIES UNITY_BUILD OFF CXX_CLANG_TIDY "")
endfunction()
