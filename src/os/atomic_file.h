// A file that appears under its name when it is whole, or not at all.
#pragma once

#include <string>

#include "os/fd.h"
#include "uffda/result.h"

namespace uffda::os {

/// Dropped before commit() has succeeded it leaves nothing: the file has no name until then, where the file system
/// allows that, and so survives not even a SIGKILL of its writer. Elsewhere it has a hidden name beside the final one.
class AtomicFile {
 public:
  /// `path` may exist: then it is a regular file, which commit() replaces (a symbolic link stays, and what it points to
  /// is replaced). Mode 0666 without the umask. Errors: those of open; invalid_argument (something else has the name).
  static Result<AtomicFile> create(const std::string& path);
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&&) = delete;
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile();

  /// Open for reading and writing.
  [[nodiscard]] int fd() const { return fd_.get(); }
  /// The file that has the name now, if any: whether `fd` is open on it.
  [[nodiscard]] bool replaces(int fd) const;
  enum class Existing { replaced, kept };
  /// Makes the contents durable, gives them the name, and makes that durable. Errors: already_exists (a file that is to
  /// be kept has the name), those of the file system; then the name is as it was.
  Result<void> commit(Existing existing = Existing::replaced);

 private:
  AtomicFile() = default;
  Result<void> open();
  /// Gives the contents a name in the directory, which must be free.
  Result<void> link_as(const std::string& name);

  UniqueFd fd_;
  UniqueFd directory_;
  std::string name_;       ///< in the directory
  std::string temporary_;  ///< empty: the file has no name yet
  std::string path_;       ///< for messages
};

}  // namespace uffda::os
