# What the build needs, all of it in Debian 12. `make setup` installs the packages of scripts/packages.txt.
set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
find_package(fmt REQUIRED)
find_package(spdlog REQUIRED)
find_package(CLI11 REQUIRED)
find_package(nlohmann_json REQUIRED)
set(Boost_NO_WARN_NEW_VERSIONS ON)
find_package(Boost 1.70 REQUIRED)  # headers only: Boost.Histogram
pkg_check_modules(liburing REQUIRED IMPORTED_TARGET liburing>=2.3)
pkg_check_modules(libzstd REQUIRED IMPORTED_TARGET libzstd>=1.5)
pkg_check_modules(libxxhash REQUIRED libxxhash>=0.8)  # its header alone
pkg_check_modules(libseccomp REQUIRED IMPORTED_TARGET libseccomp>=2.5)
pkg_check_modules(fuse3 REQUIRED IMPORTED_TARGET fuse3>=3.10)

find_program(UFFDA_CCACHE ccache)
if(UFFDA_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_C_COMPILER_LAUNCHER "${UFFDA_CCACHE}")
  set(CMAKE_CXX_COMPILER_LAUNCHER "${UFFDA_CCACHE}")
endif()
