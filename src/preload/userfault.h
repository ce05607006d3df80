// The userfaultfds of this process. Usually one; another is made when the program closed ours by number. What was
// registered with a closed one stays served: the server and the supervisor hold duplicates.
#pragma once

#include <stdint.h>  // NOLINT(modernize-deprecated-headers)

#include "preload/mappings.h"
#include "preload/session.h"

namespace uffda::shim {

inline constexpr int kMaxSpaces = 64;  // beyond: FUSE only

/// An attached userfaultfd, known to the server by its token.
struct Space {
  int fd;
  uint64_t device;  // st_dev and st_ino tell whether the number still is our userfaultfd
  uint64_t inode;
  handoff::Token token;
};

/// The address space to register new ranges with; made and attached when there is none that works. -1: there is none
/// to be had. Under the lock.
int current_space(Connection& connection);
const Space& space_at(int index);

/// UFFDIO_REGISTER with the range's space for MISSING and MINOR, and for WP if it is tracked; false on any error.
bool register_range(const Range& range);
/// Takes a range back from `space`, so that unmapping it sends no event: for ranges nobody was told of.
void unregister_range(int space, uintptr_t start, uintptr_t length);

/// In a forked child: closes the parent's userfaultfds here and forgets them. current_space does it too, for children
/// of a raw system call.
void drop_spaces();

}  // namespace uffda::shim
