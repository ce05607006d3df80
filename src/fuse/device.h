// The kernel's side of a one-file FUSE: opening /dev/fuse and mounting it on a file.
#pragma once

#include <sys/types.h>

#include <string>

#include "os/fd.h"
#include "uffda/result.h"

namespace uffda::fuse {

inline constexpr unsigned kMaxRead =
    128 * 1024;  // bytes of one read request; equal to what one handoff Read may ask for

/// Opens /dev/fuse (or $UFFDA_FUSE_DEVICE), close-on-exec. It must be opened in the user namespace that will mount it.
/// Errors: not_found, permission_denied; both name the remedy.
Result<os::UniqueFd> open_device();

/// Mounts an opened device on the regular file `path`, which shows the served file from now on to whoever is in this
/// mount namespace. Nobody may serve it before; whoever touches it waits until a FileHost serves the device. `owner`
/// and `group` are who the file belongs to. Requires CAP_SYS_ADMIN in the mount namespace's user namespace. Errors:
/// permission_denied, with the remedy; not_found.
Result<void> mount_device(int device, const std::string& path, uid_t owner, gid_t group);

/// Mounts on `path` for everybody in this mount namespace: as root by itself, else through fusermount3 (package fuse3),
/// which requires that the caller may write the file at `path`. Returns the device to serve. Errors: permission_denied
/// and not_found, with the remedy.
Result<os::UniqueFd> mount_for_everybody(const std::string& path, uid_t owner, gid_t group);

/// Takes a mount of mount_for_everybody away from `path`. Who has the file open keeps it. Does nothing if it is gone
/// already.
void detach_mount(const std::string& path);

}  // namespace uffda::fuse
