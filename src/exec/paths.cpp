#include "exec/paths.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <ranges>
#include <system_error>

namespace uffda::exec {

namespace fs = std::filesystem;

namespace {

constexpr mode_t kPlaceholderMode = S_ISVTX | 0644;

bool is_placeholder(const struct stat& file) {
  return S_ISREG(file.st_mode) && (file.st_mode & 07777U) == kPlaceholderMode && file.st_size == 0 &&
         file.st_uid == ::geteuid();
}

Result<void> check_kind(const std::string& path) {
  struct stat file{};
  if (::stat(path.c_str(), &file) != 0) {
    if (errno == ENOENT) return {};
    return fail_errno(errno, path);
  }
  if (S_ISREG(file.st_mode)) return {};
  const bool directory = S_ISDIR(file.st_mode);
  return fail(Errc::invalid_argument, path + (directory ? " is a directory: --map needs the path of a file"
                                                        : " is not a regular file: --map cannot show it"));
}

/// Makes the directories of `path` that are missing; those that were made, outermost first.
Result<std::vector<std::string>> make_directories(const fs::path& path) {
  std::vector<std::string> missing;
  struct stat ignored{};
  for (fs::path at = path; ::stat(at.c_str(), &ignored) != 0 && errno == ENOENT; at = at.parent_path())
    missing.push_back(at);
  std::ranges::reverse(missing);
  std::vector<std::string> made;
  for (const std::string& directory : missing) {
    if (::mkdir(directory.c_str(), 0755) != 0) {
      if (errno == EEXIST) continue;
      const int error = errno;
      for (const std::string& undo : std::views::reverse(made)) (void)::rmdir(undo.c_str());
      return fail_errno(error, "cannot make the directory " + directory);
    }
    made.push_back(directory);
  }
  return made;
}

}  // namespace

Result<std::string> resolve_path(const std::string& path) {
  if (path.empty()) return fail(Errc::invalid_argument, "--map needs a PATH before the '='");
  if (path.ends_with('/'))
    return fail(Errc::invalid_argument, path + " names a directory: --map needs the path of a file");
  std::error_code error;
  const fs::path absolute = fs::absolute(path, error);
  if (error) return fail_errno(error.value(), path);
  if (fs::is_symlink(fs::symlink_status(absolute, error)) && !fs::exists(absolute, error)) {
    return fail(Errc::invalid_argument,
                path + " is a symbolic link to nothing: create what it points to, or name that");
  }
  const fs::path resolved = fs::weakly_canonical(absolute, error);
  if (error) return fail_errno(error.value(), path);
  UFFDA_TRY_VOID(check_kind(resolved.string()));
  return resolved.string();
}

Result<ResolvedMap> resolve_map(const std::string& path, const std::string& source) {
  ResolvedMap map;
  map.path = map.mount_path = UFFDA_TRY(resolve_path(path));
  map.asked = fs::absolute(path).string();
  map.source = source;
  return map;
}

Result<MountPoint> MountPoint::prepare(const std::string& path) {
  MountPoint point(path);
  point.file_.reset(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NOCTTY));
  struct stat file{};
  // Somebody's file need not be readable for us to mount on it.
  if (!point.file_ && errno != ENOENT && errno != EACCES && errno != EPERM) return fail_errno(errno, path);
  if (!point.file_ && errno == ENOENT) {
    const auto advice = [&](const Error& error) {
      return std::unexpected(
          Error(Errc::permission_denied, error.context() + ": create " + path + " (an empty file) first"));
    };
    auto directories = make_directories(fs::path(path).parent_path());
    if (!directories) return advice(directories.error());
    point.directories_ = std::move(*directories);
    point.file_.reset(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!point.file_ && errno != EEXIST) {
      const Error error = Error::from_errno(errno, path + " does not exist and cannot be made");
      point.remove();
      return advice(error);
    }
    if (!point.file_) return prepare(path);  // another one was faster
    (void)::fchmod(point.file_.get(), kPlaceholderMode);
  }
  // Somebody's file that we cannot open, or no placeholder: there is nothing to lock or to remove.
  if (!point.file_ || ::fstat(point.file_.get(), &file) != 0 || !is_placeholder(file)) {
    point.file_.reset();
    return point;
  }
  (void)::flock(point.file_.get(), LOCK_SH);
  struct stat now{};
  // Its last user may have removed it before we had the lock.
  if (::stat(path.c_str(), &now) != 0 || now.st_ino != file.st_ino) return prepare(path);
  return point;
}

void MountPoint::remove() {
  if (file_) {
    struct stat ours{};
    struct stat now{};
    const bool last = ::flock(file_.get(), LOCK_EX | LOCK_NB) == 0;
    const bool same = ::fstat(file_.get(), &ours) == 0 && ::lstat(path_.c_str(), &now) == 0 &&
                      ours.st_ino == now.st_ino && ours.st_dev == now.st_dev && is_placeholder(now);
    if (last && same) (void)::unlink(path_.c_str());
    file_.reset();
  }
  for (const std::string& directory : std::views::reverse(directories_)) (void)::rmdir(directory.c_str());
  directories_.clear();
}

Result<PrivateDirectory> PrivateDirectory::create() {
  const char* runtime = std::getenv("XDG_RUNTIME_DIR");
  for (const std::string& parent : {std::string(runtime != nullptr ? runtime : ""), std::string("/tmp")}) {
    // A socket's path has 107 bytes.
    if (!parent.starts_with('/') || parent.size() > 80) continue;
    std::string name = parent + "/uffda-XXXXXX";
    if (::mkdtemp(name.data()) != nullptr) return PrivateDirectory(name);
  }
  return fail_errno(errno, "cannot make a directory in $XDG_RUNTIME_DIR or /tmp");
}

PrivateDirectory::~PrivateDirectory() {
  std::error_code ignored;
  if (!path_.empty()) fs::remove_all(path_, ignored);
}

}  // namespace uffda::exec
