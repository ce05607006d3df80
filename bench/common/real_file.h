// A real file on disk, and the ways to have it as memory that uffda is measured beside.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <optional>
#include <string>

namespace bench {

/// A file of bytes that do not compress. Made if it is not there, or has another size.
class RealFile {
 public:
  RealFile(std::string path, std::size_t bytes);
  ~RealFile();
  RealFile(const RealFile&) = delete;
  RealFile& operator=(const RealFile&) = delete;

  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }
  [[nodiscard]] int fd() const { return fd_; }
  /// Takes the file out of the page cache of this machine, and makes sure that it is. Requires: nobody maps it.
  void drop() const;
  /// Reads [0, bytes) into the page cache.
  void cache(std::size_t bytes) const;

 private:
  std::string path_;
  std::size_t bytes_;
  int fd_;
};

/// A file mapped read-only while this lives.
class PlainMapping {
 public:
  enum class Advice { none, random };
  PlainMapping(const std::string& path, std::size_t bytes, Advice advice);
  ~PlainMapping();
  PlainMapping(const PlainMapping&) = delete;
  PlainMapping& operator=(const PlainMapping&) = delete;
  [[nodiscard]] const std::byte* data() const { return data_; }

 private:
  std::byte* data_;
  std::size_t bytes_;
};

/// Debian's nbdfuse with nbdkit's file plugin: the same file through FUSE. Mounted while this lives.
class NbdFuse {
 public:
  /// Why it cannot be used here; none if it can.
  static std::optional<std::string> cannot();
  /// `directory` is made if it is not there. Requires: !cannot().
  NbdFuse(const std::string& directory, const std::string& file);
  ~NbdFuse();
  NbdFuse(const NbdFuse&) = delete;
  NbdFuse& operator=(const NbdFuse&) = delete;

  [[nodiscard]] bool started() const { return started_; }
  [[nodiscard]] std::string path() const { return directory_ + "/file"; }
  /// Takes the mounted file out of the page cache. The file behind it has a cache of its own.
  void drop() const;

 private:
  std::string directory_;
  pid_t child_ = -1;
  bool started_ = false;
};

}  // namespace bench
