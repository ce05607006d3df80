// Serves one file over FUSE. The root inode of the mount IS the file, so that it can be mounted on any path.
//
// The kernel asks (open, read, getattr, statfs), a few threads answer: one thread at a time waits for the next request,
// hands the waiting to the next thread, and answers what it got. Reads come from a ReadAt, of which every thread has
// its own. The kernel's page cache keeps what was read: the bytes never change, so the cache is right, and shared
// read-only mappings work. Of a file whose bytes change the kernel keeps nothing: every read and write comes here, and
// the kernel refuses shared mappings (ENODEV), which would show something else.
//
// The host ends when the last mount of the file is gone and the last descriptor and mapping of it closed (the kernel
// says ENODEV), or when stop() is called; requests that are still open then fail.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "os/fd.h"
#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda::fuse {

/// Fills the buffer with the bytes from an offset on; fewer only at the end of the file. An error becomes EIO for the
/// reader.
using ReadAt = std::function<Result<std::size_t>(ByteOffset offset, std::span<std::byte> buffer)>;

/// How one thread writes, and stores what anybody has written. `seen`: how many failures whoever asks was told of.
struct FileWriter {
  std::function<Result<void>(ByteOffset offset, std::span<const std::byte> bytes)> write_at;
  std::function<Result<void>(std::uint64_t& seen)> sync;
  /// Moves the file's end, or says where it is. Null: the size stays.
  enum class Resize : std::uint8_t { ask, exactly, grow };
  std::function<Result<ByteCount>(Resize how, ByteCount length)> resize = nullptr;
  /// How many failures somebody has been told of.
  std::function<Result<std::uint64_t>()> failures_told;
};

enum class FileMode : std::uint8_t {
  read_only,
  writable,  ///< by write(2), through make_writer
  cow,       ///< opens for writing, and takes no write(2): for programs that map it, and are given a view of their own
};

struct FileOptions {
  ByteCount size;
  uid_t owner = 0;
  gid_t group = 0;
  FileMode mode = FileMode::read_only;
  bool changes = false;  // others may write to it: nothing is cached
  bool grows = false;    // FileWriter::resize works; `size` is the most it can have
  std::function<Result<FileWriter>()> make_writer = nullptr;  // with FileMode::writable: as make_reader
  unsigned threads = 8;                                       // how many reads may wait for the source at once
  std::function<Result<ReadAt>()> make_reader;                // called once for each thread, before serving begins
};

struct FileCounts {
  std::uint64_t reads = 0;
  std::uint64_t bytes = 0;
  std::uint64_t writes = 0;
  std::uint64_t bytes_written = 0;
  std::uint64_t errors = 0;
  std::uint64_t opens = 0;
};

/// Threads: all methods from any thread, except that destruction is once and last.
class FileHost {
 public:
  class Impl;

  /// Serves a device that is mounted already (mount_device). Errors: what make_reader said, no_memory.
  static Result<std::unique_ptr<FileHost>> serve(os::UniqueFd device, FileOptions options);

  /// Mounts on `path` for everybody in this mount namespace and serves: by itself as root, else through fusermount3.
  /// Unmounts at stop(). Errors: permission_denied and not_found with the remedy.
  static Result<std::unique_ptr<FileHost>> mount(const std::string& path, FileOptions options);

  FileHost(const FileHost&) = delete;
  FileHost& operator=(const FileHost&) = delete;
  ~FileHost();  // stop()

  /// Where mount() made the mount: takes the path away, and serves on for those who have the file open or mapped.
  void unmount();
  /// Unmounts, ends and waits for the threads. May be called again.
  void stop();
  /// Becomes readable when serving has ended, for whatever reason. Stays the host's.
  [[nodiscard]] int ended_descriptor() const;
  [[nodiscard]] FileCounts counts() const;

 private:
  explicit FileHost(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace uffda::fuse
