// An example has nothing to undo: what fails is said, and ends it.
#pragma once

#include <cstdio>
#include <cstdlib>

/// Says what, and what errno means.
[[noreturn]] inline void fail(const char* what) {
  std::perror(what);
  std::exit(2);
}

[[noreturn]] inline void fail_plainly(const char* what) {
  std::fprintf(stderr, "kvm-restore: %s\n", what);
  std::exit(2);
}
