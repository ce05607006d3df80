#include "os/atomic_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdlib>
#include <utility>

namespace uffda::os {
namespace {

constexpr mode_t kMode = 0666;

/// The file that a symbolic link leads to; the path itself if there is none.
std::string resolved(const std::string& path) {
  char* const real = ::realpath(path.c_str(), nullptr);
  if (real == nullptr) return path;
  std::string text = real;
  std::free(real);  // NOLINT(cppcoreguidelines-no-malloc): realpath's
  return text;
}

}  // namespace

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : fd_(std::move(other.fd_)),
      directory_(std::move(other.directory_)),
      name_(std::move(other.name_)),
      temporary_(std::exchange(other.temporary_, {})),
      path_(std::move(other.path_)) {}

AtomicFile::~AtomicFile() {
  if (!temporary_.empty()) ::unlinkat(directory_.get(), temporary_.c_str(), 0);
}

Result<AtomicFile> AtomicFile::create(const std::string& path) {
  AtomicFile file;
  file.path_ = path;
  const std::string real = resolved(path);
  const std::size_t slash = real.rfind('/');
  file.name_ = slash == std::string::npos ? real : real.substr(slash + 1);
  const std::string directory = slash == std::string::npos ? "." : real.substr(0, slash + 1);
  struct stat status{};
  if (file.name_.empty() || (::stat(real.c_str(), &status) == 0 && !S_ISREG(status.st_mode))) {
    return fail(Errc::invalid_argument, path + ": is not a regular file, which is what would be written");
  }
  file.directory_.reset(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!file.directory_) return fail_errno(errno, path);
  UFFDA_TRY_VOID(file.open());
  return file;
}

Result<void> AtomicFile::open() {
  fd_.reset(::openat(directory_.get(), ".", O_TMPFILE | O_RDWR | O_CLOEXEC, kMode));
  if (fd_) return {};
  if (errno != EOPNOTSUPP && errno != EISDIR && errno != ENOENT) return fail_errno(errno, path_);
  temporary_ = fmt::format(".{}.{}.part", name_.substr(0, NAME_MAX / 2), ::getpid());
  fd_.reset(::openat(directory_.get(), temporary_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, kMode));
  if (fd_) return {};
  temporary_.clear();  // not ours
  return fail_errno(errno, path_);
}

bool AtomicFile::replaces(int fd) const {
  struct stat there{};
  struct stat other{};
  return ::fstatat(directory_.get(), name_.c_str(), &there, 0) == 0 && ::fstat(fd, &other) == 0 &&
         there.st_dev == other.st_dev && there.st_ino == other.st_ino;
}

Result<void> AtomicFile::commit(Existing existing) {
  if (::fsync(fd_.get()) != 0) return fail_errno(errno, path_);
  if (existing == Existing::kept) {
    UFFDA_TRY_VOID(link_as(name_));
    if (!temporary_.empty()) ::unlinkat(directory_.get(), temporary_.c_str(), 0);
  } else {
    if (temporary_.empty()) {
      // A name beside the final one for a moment: no system call gives an unnamed file a name that is taken.
      const std::string name = fmt::format(".{}.{}.part", name_.substr(0, NAME_MAX / 2), ::getpid());
      UFFDA_TRY_VOID(link_as(name));
      temporary_ = name;
    }
    if (::renameat(directory_.get(), temporary_.c_str(), directory_.get(), name_.c_str()) != 0)
      return fail_errno(errno, path_);
  }
  temporary_.clear();
  if (::fsync(directory_.get()) != 0) return fail_errno(errno, path_);
  return {};
}

Result<void> AtomicFile::link_as(const std::string& name) {
  const bool unnamed = temporary_.empty();
  const std::string from = unnamed ? fmt::format("/proc/self/fd/{}", fd_.get()) : temporary_;
  const int flags = unnamed ? AT_SYMLINK_FOLLOW : 0;
  if (::linkat(directory_.get(), from.c_str(), directory_.get(), name.c_str(), flags) == 0) return {};
  return fail_errno(errno, path_);
}

}  // namespace uffda::os
