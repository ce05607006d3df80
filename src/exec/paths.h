// Where PATH is, and a file to mount on where there is none.
#pragma once

#include <sys/types.h>

#include <string>
#include <utility>
#include <vector>

#include "exec/resolved_map.h"
#include "os/fd.h"
#include "uffda/result.h"

namespace uffda::exec {

/// PATH made absolute, symbolic links resolved; its last parts may be missing.
/// Errors: invalid_argument (a directory, a device, a dangling link), permission_denied, not_found.
Result<std::string> resolve_path(const std::string& path);

/// `path` to show `source`, with no name of an export yet, to be mounted on PATH itself. Errors: as resolve_path.
Result<ResolvedMap> resolve_map(const std::string& path, const std::string& source);

/// Something to mount on at `path`: the file that is there, or an empty file made for it, together with missing
/// directories.
///
/// What was made goes again when its last user goes: a placeholder is known by being empty with the sticky bit set, and
/// everybody who mounts on one holds a shared lock on it, so that two programs that use the same missing PATH do not
/// take it from each other (removing a mount point takes the mount away in every namespace). One that a killed
/// supervisor left behind goes with the next.
class MountPoint {
 public:
  /// Errors: permission_denied (PATH does not exist and cannot be made; says to create it), and what the file system
  /// said.
  static Result<MountPoint> prepare(const std::string& path);

  /// Removes what prepare() made and nobody else uses. Call it when nothing is mounted on it any more.
  void remove();

  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  explicit MountPoint(std::string path) : path_(std::move(path)) {}

  std::string path_;
  os::UniqueFd file_;                     // locked; -1 where the file is not a placeholder
  std::vector<std::string> directories_;  // made by us, outermost first
};

/// A private directory for sockets, removed with what is in it. Under $XDG_RUNTIME_DIR, else /tmp.
class PrivateDirectory {
 public:
  static Result<PrivateDirectory> create();
  PrivateDirectory(PrivateDirectory&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  PrivateDirectory& operator=(PrivateDirectory&& other) noexcept {
    std::swap(path_, other.path_);
    return *this;
  }
  PrivateDirectory(const PrivateDirectory&) = delete;
  PrivateDirectory& operator=(const PrivateDirectory&) = delete;
  ~PrivateDirectory();

  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] std::string file(const char* name) const { return path_ + "/" + name; }

 private:
  explicit PrivateDirectory(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

}  // namespace uffda::exec
