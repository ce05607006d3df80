#include "fuse/file_host.h"

#define FUSE_USE_VERSION 314

#include <fcntl.h>
#include <fuse3/fuse_log.h>
#include <fuse3/fuse_lowlevel.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <mutex>
#include <string_view>
#include <thread>
#include <vector>

#include "base/log.h"
#include "fuse/device.h"

namespace uffda::fuse {

namespace {

constexpr double kForever = 1e9;               // seconds; of a file that nobody writes to nothing ever changes
constexpr std::size_t kMaxWrite = 128 * 1024;  // of one request

struct SessionDeleter {
  void operator()(fuse_session* session) const { ::fuse_session_destroy(session); }
};

/// What one serving thread has to itself; the callbacks of libfuse find it here.
struct Worker {
  ReadAt read_at;
  FileWriter writer;
  std::vector<std::byte> buffer = std::vector<std::byte>(kMaxRead);
};
thread_local Worker* current_worker = nullptr;

/// One open file: what it was told of failures to store something.
struct OpenFile {
  std::mutex mutex;
  std::uint64_t failures_seen = 0;
};
OpenFile& open_file(const fuse_file_info& file) { return *reinterpret_cast<OpenFile*>(file.fh); }

/// What it is about comes to us as a result, too.
[[gnu::format(printf, 2, 0)]] void log_of_libfuse(fuse_log_level /*level*/, const char* format, va_list arguments) {
  std::array<char, 512> text{};
  (void)std::vsnprintf(text.data(), text.size(), format, arguments);
  std::string_view line(text.data());
  while (line.ends_with('\n')) line.remove_suffix(1);
  log(LogLevel::info, "libfuse: {}", line);
}

int errno_of(const Error& error) { return error.code() == Errc::no_memory ? ENOSPC : EIO; }

}  // namespace

class FileHost::Impl {
 public:
  Impl(FileOptions options, os::UniqueFd ended, os::UniqueFd stop)
      : options_(std::move(options)), changed_(::time(nullptr)), ended_(std::move(ended)), stop_(std::move(stop)) {}

  ~Impl() { stop(); }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  Result<void> make_session();
  /// Serves an opened and mounted device.
  Result<void> start(os::UniqueFd device);
  void stop();
  void unmount();
  void owns_mount(const std::string& path) { mount_point_ = path; }

  /// Threads: those that serve, if the file grows.
  [[nodiscard]] struct stat attributes() const;
  [[nodiscard]] std::uint64_t end_of_file() const;
  [[nodiscard]] struct statvfs file_system() const;
  void open(fuse_req_t request, fuse_file_info* file);
  void read(fuse_req_t request, std::size_t length, off_t offset);
  void write(fuse_req_t request, std::span<const std::byte> bytes, off_t offset);
  void sync(fuse_req_t request, const fuse_file_info& file) const;
  void set_attributes(fuse_req_t request, const struct stat& to, int what);
  void allocate(fuse_req_t request, int mode, off_t offset, off_t length) const;
  [[nodiscard]] bool opens_for_writing() const { return options_.mode != FileMode::read_only; }
  [[nodiscard]] double attributes_last() const { return options_.changes ? 0 : kForever; }

  [[nodiscard]] int ended_descriptor() const { return ended_.get(); }
  [[nodiscard]] FileCounts counts() const {
    return {.reads = reads_.load(),
            .bytes = bytes_.load(),
            .writes = writes_.load(),
            .bytes_written = bytes_written_.load(),
            .errors = errors_.load(),
            .opens = opens_.load()};
  }

 private:
  void work(Worker& worker);
  /// Waits for the next request, one thread at a time. False: serving has ended.
  bool receive(fuse_buf& request);
  void end();

  const FileOptions options_;
  std::atomic<time_t> changed_;  // when
  mutable std::atomic<std::uint64_t> last_length_ = 0;
  os::UniqueFd ended_;  // eventfd
  os::UniqueFd stop_;   // eventfd
  std::unique_ptr<fuse_session, SessionDeleter> session_;
  std::string mount_point_;  // empty where somebody else mounted
  std::once_flag unmounted_;
  std::atomic<bool> kernel_ended_ = false;
  std::mutex receiving_;
  std::vector<Worker> workers_;
  std::vector<std::jthread> threads_;
  std::atomic<std::uint64_t> reads_ = 0, bytes_ = 0, writes_ = 0, bytes_written_ = 0, errors_ = 0, opens_ = 0;
};

namespace {

FileHost::Impl& host_of(fuse_req_t request) { return *static_cast<FileHost::Impl*>(::fuse_req_userdata(request)); }

void on_init(void* /*host*/, fuse_conn_info* connection) {
  // The file never changes: no checks of time and size before using the kernel's cache.
  connection->want &= ~static_cast<unsigned>(FUSE_CAP_AUTO_INVAL_DATA);
  connection->want |= connection->capable & static_cast<unsigned>(FUSE_CAP_ASYNC_READ | FUSE_CAP_PARALLEL_DIROPS);
  connection->max_readahead = kMaxRead;
  connection->max_read = kMaxRead;  // libfuse wants it here, too
  connection->max_write = kMaxWrite;
}

void on_getattr(fuse_req_t request, fuse_ino_t inode, fuse_file_info* /*file*/) {
  if (inode != FUSE_ROOT_ID) {
    ::fuse_reply_err(request, ENOENT);
    return;
  }
  const struct stat attributes = host_of(request).attributes();
  ::fuse_reply_attr(request, &attributes, host_of(request).attributes_last());
}

void on_setattr(fuse_req_t request, fuse_ino_t /*inode*/, struct stat* to, int what, fuse_file_info* /*file*/) {
  host_of(request).set_attributes(request, *to, what);
}

void on_access(fuse_req_t request, fuse_ino_t /*inode*/, int mask) {
  const int refused = host_of(request).opens_for_writing() ? X_OK : W_OK | X_OK;
  ::fuse_reply_err(request, (mask & refused) != 0 ? EACCES : 0);
}

void on_release(fuse_req_t request, fuse_ino_t /*inode*/, fuse_file_info* file) {
  delete &open_file(*file);
  ::fuse_reply_err(request, 0);
}

void on_write(fuse_req_t request, fuse_ino_t /*inode*/, const char* bytes, std::size_t length, off_t offset,
              fuse_file_info* /*file*/) {
  host_of(request).write(request, std::as_bytes(std::span(bytes, length)), offset);
}

void on_fsync(fuse_req_t request, fuse_ino_t /*inode*/, int /*data_only*/, fuse_file_info* file) {
  host_of(request).sync(request, *file);
}

void on_fallocate(fuse_req_t request, fuse_ino_t /*inode*/, int mode, off_t offset, off_t length,
                  fuse_file_info* /*file*/) {
  host_of(request).allocate(request, mode, offset, length);
}

void on_open(fuse_req_t request, fuse_ino_t /*inode*/, fuse_file_info* file) { host_of(request).open(request, file); }

void on_read(fuse_req_t request, fuse_ino_t /*inode*/, std::size_t length, off_t offset, fuse_file_info* /*file*/) {
  host_of(request).read(request, length, offset);
}

void on_statfs(fuse_req_t request, fuse_ino_t /*inode*/) {
  const struct statvfs answer = host_of(request).file_system();
  ::fuse_reply_statfs(request, &answer);
}

constexpr fuse_lowlevel_ops kOperations = [] {
  fuse_lowlevel_ops operations{};
  operations.init = on_init;
  operations.getattr = on_getattr;
  operations.setattr = on_setattr;
  operations.access = on_access;
  operations.open = on_open;
  operations.release = on_release;
  operations.read = on_read;
  operations.write = on_write;
  operations.fsync = on_fsync;
  operations.fallocate = on_fallocate;
  operations.statfs = on_statfs;
  return operations;
}();

Result<os::UniqueFd> make_eventfd() {
  os::UniqueFd event(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!event) return fail_errno(errno, "eventfd");
  return event;
}

void signal_event(int event) {
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(event, &one, sizeof one);
}

}  // namespace

struct stat FileHost::Impl::attributes() const {
  struct stat result{};
  result.st_ino = FUSE_ROOT_ID;
  result.st_mode = S_IFREG | (opens_for_writing() ? 0644 : 0444);
  result.st_nlink = 1;
  result.st_uid = options_.owner;
  result.st_gid = options_.group;
  const std::uint64_t size = end_of_file();
  result.st_size = static_cast<off_t>(size);
  result.st_blksize = static_cast<blksize_t>(kPageSize.value);
  result.st_blocks = static_cast<blkcnt_t>(align_up(size, kPageSize.value) / 512);
  result.st_atime = result.st_mtime = result.st_ctime = changed_.load(std::memory_order_relaxed);
  return result;
}

std::uint64_t FileHost::Impl::end_of_file() const {
  if (!options_.grows || current_worker == nullptr) return options_.size.value;
  const auto asked = current_worker->writer.resize(FileWriter::Resize::ask, {});
  if (asked) last_length_.store(asked->value, std::memory_order_relaxed);
  return last_length_.load(std::memory_order_relaxed);
}

struct statvfs FileHost::Impl::file_system() const {
  struct statvfs result{};
  result.f_bsize = result.f_frsize = kPageSize.value;
  result.f_blocks = align_up(options_.size.value, kPageSize.value) / kPageSize.value;
  result.f_files = 1;
  result.f_namemax = 255;
  return result;
}

void FileHost::Impl::open(fuse_req_t request, fuse_file_info* file) {
  if ((file->flags & O_ACCMODE) != O_RDONLY && !opens_for_writing()) {
    ::fuse_reply_err(request, EACCES);
    return;
  }
  opens_.fetch_add(1, std::memory_order_relaxed);
  file->keep_cache = options_.changes ? 0 : 1;
  const bool own_view = options_.mode == FileMode::cow && (file->flags & O_ACCMODE) != O_RDONLY;
  file->direct_io = options_.changes || own_view ? 1 : 0;  // the kernel's cache must not be written to
  auto opened = std::make_unique<OpenFile>();
  if (options_.mode == FileMode::writable) opened->failures_seen = current_worker->writer.failures_told().value_or(0);
  OpenFile* const kept = opened.release();  // until on_release
  file->fh = reinterpret_cast<std::uintptr_t>(kept);
  if (::fuse_reply_open(request, file) != 0) delete kept;
}

void FileHost::Impl::write(fuse_req_t request, std::span<const std::byte> bytes, off_t offset) {
  if (options_.mode != FileMode::writable) {
    ::fuse_reply_err(request, EPERM);
    return;
  }
  const std::uint64_t size = options_.size.value;
  const auto start = static_cast<std::uint64_t>(offset);
  if (offset < 0 || start >= size) {
    ::fuse_reply_err(request, offset < 0 ? EINVAL : EFBIG);  // the size stays
    return;
  }
  const auto part = bytes.first(static_cast<std::size_t>(std::min<std::uint64_t>(bytes.size(), size - start)));
  writes_.fetch_add(1, std::memory_order_relaxed);
  if (const auto written = current_worker->writer.write_at({start}, part); !written) {
    errors_.fetch_add(1, std::memory_order_relaxed);
    ::fuse_reply_err(request, errno_of(written.error()));
    return;
  }
  bytes_written_.fetch_add(part.size(), std::memory_order_relaxed);
  changed_.store(::time(nullptr), std::memory_order_relaxed);
  ::fuse_reply_write(request, part.size());
}

void FileHost::Impl::sync(fuse_req_t request, const fuse_file_info& file) const {
  if (options_.mode != FileMode::writable) {
    ::fuse_reply_err(request, 0);
    return;
  }
  OpenFile& opened = open_file(file);
  const std::scoped_lock lock(opened.mutex);
  const auto synced = current_worker->writer.sync(opened.failures_seen);
  ::fuse_reply_err(request, synced ? 0 : errno_of(synced.error()));
}

void FileHost::Impl::set_attributes(fuse_req_t request, const struct stat& to, int what) {
  constexpr int kTimes = FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_ATIME_NOW | FUSE_SET_ATTR_MTIME_NOW |
                         FUSE_SET_ATTR_CTIME;
  const bool sized = (what & FUSE_SET_ATTR_SIZE) != 0;
  const auto size = static_cast<off_t>(options_.size.value);
  int error = 0;
  if (!opens_for_writing()) {
    error = sized ? EACCES : EPERM;
  } else if (sized && options_.grows && to.st_size >= 0) {
    const auto resized =
        current_worker->writer.resize(FileWriter::Resize::exactly, {static_cast<std::uint64_t>(to.st_size)});
    error = resized ? 0 : resized.error().code() == Errc::out_of_range ? EFBIG : errno_of(resized.error());
  } else if (sized && to.st_size != size) {
    error = to.st_size > size ? EFBIG : EPERM;
  } else if ((what & ~(kTimes | FUSE_SET_ATTR_SIZE)) != 0) {
    error = EPERM;
  }
  if (error != 0) {
    ::fuse_reply_err(request, error);
    return;
  }
  changed_.store(::time(nullptr), std::memory_order_relaxed);
  const struct stat now = attributes();
  ::fuse_reply_attr(request, &now, attributes_last());
}

void FileHost::Impl::allocate(fuse_req_t request, int mode, off_t offset, off_t length) const {
  // Space is seen to when something is written. Holes would have to be zeroes at the source.
  const bool grows = offset < 0 || length < 0 || static_cast<std::uint64_t>(offset) > options_.size.value ||
                     static_cast<std::uint64_t>(length) > options_.size.value - static_cast<std::uint64_t>(offset);
  const bool supported = options_.mode == FileMode::writable && (mode & ~FALLOC_FL_KEEP_SIZE) == 0;
  int error = !supported ? EOPNOTSUPP : grows && mode == 0 ? EFBIG : 0;
  if (error == 0 && mode == 0 && options_.grows) {
    const auto resized =
        current_worker->writer.resize(FileWriter::Resize::grow, {static_cast<std::uint64_t>(offset + length)});
    if (!resized) error = errno_of(resized.error());
  }
  ::fuse_reply_err(request, error);
}

void FileHost::Impl::read(fuse_req_t request, std::size_t length, off_t offset) {
  Worker& worker = *current_worker;
  if (offset < 0 || length > worker.buffer.size()) {
    ::fuse_reply_err(request, EINVAL);
    return;
  }
  reads_.fetch_add(1, std::memory_order_relaxed);
  const auto buffer = std::span(worker.buffer).first(length);
  const auto got = worker.read_at({static_cast<std::uint64_t>(offset)}, buffer);
  // A short answer inside of the file would become zeroes in the kernel's cache. (Of a file that grows it keeps none.)
  const auto start = static_cast<std::uint64_t>(offset);
  const std::uint64_t left = start < options_.size.value ? options_.size.value - start : 0;
  const bool whole = got && (options_.grows || *got == std::min<std::uint64_t>(length, left));
  if (!whole) {
    errors_.fetch_add(1, std::memory_order_relaxed);
    ::fuse_reply_err(request, EIO);
    return;
  }
  bytes_.fetch_add(*got, std::memory_order_relaxed);
  ::fuse_reply_buf(request, reinterpret_cast<const char*>(buffer.data()), *got);
}

Result<void> FileHost::Impl::make_session() {
  ::fuse_set_log_func(log_of_libfuse);
  std::string name = "uffda";
  std::string max_read = "-omax_read=" + std::to_string(kMaxRead);
  std::array<char*, 2> words{name.data(), max_read.data()};
  fuse_args arguments = FUSE_ARGS_INIT(static_cast<int>(words.size()), words.data());
  session_.reset(::fuse_session_new(&arguments, &kOperations, sizeof kOperations, this));
  ::fuse_opt_free_args(&arguments);
  if (!session_) return fail(Errc::no_memory, "libfuse made no session");
  return {};
}

Result<void> FileHost::Impl::start(os::UniqueFd device) {
  workers_.resize(options_.threads);
  for (Worker& worker : workers_) {
    worker.read_at = UFFDA_TRY(options_.make_reader());
    if (options_.mode == FileMode::writable) worker.writer = UFFDA_TRY(options_.make_writer());
  }
  // A request may be withdrawn between poll and read: never block in read, or stop() would not be heard.
  if (::fcntl(device.get(), F_SETFL, O_NONBLOCK) != 0) return fail_errno(errno, "fcntl of /dev/fuse");
  const std::string name = "/dev/fd/" + std::to_string(device.get());
  if (::fuse_session_mount(session_.get(), name.c_str()) != 0) return fail(Errc::io, "libfuse refused " + name);
  (void)device.release();  // the session closes it
  for (Worker& worker : workers_) threads_.emplace_back([this, &worker] { work(worker); });
  return {};
}

bool FileHost::Impl::receive(fuse_buf& request) {
  const std::scoped_lock one_at_a_time(receiving_);
  while (!::fuse_session_exited(session_.get())) {
    std::array<pollfd, 2> entries{{{.fd = ::fuse_session_fd(session_.get()), .events = POLLIN, .revents = 0},
                                   {.fd = stop_.get(), .events = POLLIN, .revents = 0}}};
    if (::poll(entries.data(), entries.size(), -1) < 0) {
      if (errno == EINTR) continue;
      return false;
    }
    if (entries[1].revents != 0) return false;
    const int got = ::fuse_session_receive_buf(session_.get(), &request);
    if (got > 0) return true;
    if (got == -EINTR || got == -EAGAIN) continue;
    // ENODEV: unmounted and closed by everybody. ECONNABORTED says the same, where the kernel was quicker.
    if (got == 0 || got == -ECONNABORTED) kernel_ended_ = true;
    return false;
  }
  return false;
}

void FileHost::Impl::work(Worker& worker) {
  current_worker = &worker;
  fuse_buf request{};
  while (receive(request)) ::fuse_session_process_buf(session_.get(), &request);
  std::free(request.mem);  // libfuse allocates it at the first request, by malloc
  end();
}

void FileHost::Impl::end() {
  signal_event(stop_.get());  // the other threads follow
  signal_event(ended_.get());
}

void FileHost::Impl::unmount() {
  if (mount_point_.empty()) return;
  std::call_once(unmounted_, [this] {
    // Where the kernel ended it, the mount is gone already, unless the connection was aborted.
    struct stat ignored;
    const bool dead = kernel_ended_.load() && ::stat(mount_point_.c_str(), &ignored) != 0 && errno == ENOTCONN;
    if (dead || !kernel_ended_.load()) detach_mount(mount_point_);
  });
}

void FileHost::Impl::stop() {
  unmount();
  signal_event(stop_.get());
  threads_.clear();  // joins
  session_.reset();  // closes the device: requests that are still open fail
}

FileHost::FileHost(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
FileHost::~FileHost() = default;

Result<std::unique_ptr<FileHost>> FileHost::serve(os::UniqueFd device, FileOptions options) {
  auto impl = std::make_unique<Impl>(std::move(options), UFFDA_TRY(make_eventfd()), UFFDA_TRY(make_eventfd()));
  UFFDA_TRY_VOID(impl->make_session());
  UFFDA_TRY_VOID(impl->start(std::move(device)));
  return std::unique_ptr<FileHost>(new FileHost(std::move(impl)));
}

Result<std::unique_ptr<FileHost>> FileHost::mount(const std::string& path, FileOptions options) {
  auto impl = std::make_unique<Impl>(std::move(options), UFFDA_TRY(make_eventfd()), UFFDA_TRY(make_eventfd()));
  UFFDA_TRY_VOID(impl->make_session());
  os::UniqueFd device = UFFDA_TRY(mount_for_everybody(path, impl->attributes().st_uid, impl->attributes().st_gid));
  impl->owns_mount(path);
  UFFDA_TRY_VOID(impl->start(std::move(device)));
  return std::unique_ptr<FileHost>(new FileHost(std::move(impl)));
}

void FileHost::unmount() { impl_->unmount(); }
void FileHost::stop() { impl_->stop(); }
int FileHost::ended_descriptor() const { return impl_->ended_descriptor(); }
FileCounts FileHost::counts() const { return impl_->counts(); }

}  // namespace uffda::fuse
