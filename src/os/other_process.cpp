#include "os/other_process.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/kcmp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <memory>

#include "os/socket.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

namespace uffda::os {
namespace {

constexpr std::uint64_t kInitialized = std::uint64_t{1} << 31U;  // the kernel's own bit among the features
constexpr std::string_view kUserfaultLink = "anon_inode:[userfaultfd]";

Error no_right(pid_t pid, int error) {
  return Error(Errc::permission_denied,
               fmt::format("process {} may only be looked into by who may trace it: run this as root (CAP_SYS_PTRACE), "
                           "or as its user where /proc/sys/kernel/yama/ptrace_scope is 0 or absent",
                           pid),
               error);
}

Error why_not(pid_t pid, int error, std::string_view what) {
  if (error == EPERM || error == EACCES) return no_right(pid, error);
  if (error == ESRCH || error == ENOENT)
    return Error(Errc::not_found, fmt::format("there is no process {}", pid), error);
  return Error::from_errno(error, what);
}

Result<std::string> read_all(const std::string& path, pid_t pid) {
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) return std::unexpected(why_not(pid, errno, path));
  std::string text;
  std::array<char, 65'536> part{};
  for (;;) {
    const ssize_t size = ::read(file.get(), part.data(), part.size());
    if (size < 0 && errno == EINTR) continue;
    if (size < 0) return std::unexpected(why_not(pid, errno, path));
    if (size == 0) return text;
    text.append(part.data(), static_cast<std::size_t>(size));
  }
}

template <typename T>
std::optional<T> take_number(std::string_view& text, int base) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc()) return std::nullopt;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return value;
}

std::string_view trimmed(std::string_view text) {
  const std::size_t start = text.find_first_not_of(" \t");
  return start == std::string_view::npos ? std::string_view{} : text.substr(start);
}

/// The next line, which is taken away.
std::string_view take_line(std::string_view& text) {
  const std::string_view line = text.substr(0, text.find('\n'));
  text.remove_prefix(std::min(text.size(), line.size() + 1));
  return line;
}

std::optional<std::string_view> value_of(std::string_view line, std::string_view field) {
  if (!line.starts_with(field)) return std::nullopt;
  return trimmed(line.substr(field.size()));
}

/// "START-END rw-p OFFSET DEVICE INODE NAME"
std::optional<TrappedRange> parse_mapping(std::string_view line) {
  const auto start = take_number<std::uint64_t>(line, 16);
  if (!start || !line.starts_with('-')) return std::nullopt;
  line.remove_prefix(1);
  const auto end = take_number<std::uint64_t>(line, 16);
  if (!end || *end <= *start || !line.starts_with(' ')) return std::nullopt;
  for (int field = 0; field < 4; ++field) {
    line = trimmed(line);
    line.remove_prefix(std::min(line.find(' '), line.size()));
  }
  return TrappedRange{
      .start = {*start}, .length = {*end - *start}, .page_size = kPageSize, .name = std::string(trimmed(line))};
}

bool has_flag(std::string_view flags, std::string_view flag) {
  for (; !(flags = trimmed(flags)).empty(); flags.remove_prefix(std::min(flags.find(' '), flags.size())))
    if (flags.substr(0, flags.find(' ')) == flag) return true;
  return false;
}

/// The names of a directory that are numbers; none if it cannot be read.
std::vector<int> numbers_in(const std::string& path) {
  std::vector<int> numbers;
  const std::unique_ptr<DIR, int (*)(DIR*)> directory(::opendir(path.c_str()), &::closedir);
  if (!directory) return numbers;
  while (const dirent* entry = ::readdir(directory.get())) {  // NOLINT(concurrency-mt-unsafe): a stream of our own
    std::string_view name = entry->d_name;
    const auto number = take_number<int>(name, 10);
    if (number && name.empty()) numbers.push_back(*number);
  }
  std::ranges::sort(numbers);
  return numbers;
}

std::string link_of(const std::string& path) {
  std::array<char, 64> target{};
  const ssize_t size = ::readlink(path.c_str(), target.data(), target.size());
  return size < 0 ? std::string{} : std::string(target.data(), static_cast<std::size_t>(size));
}

std::string name_of(pid_t pid) {
  const auto text = read_all(fmt::format("/proc/{}/comm", pid), pid);
  return text ? text->substr(0, text->find('\n')) : "?";
}

}  // namespace

Result<ProcessHandle> open_process(pid_t pid) {
  UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (process) return ProcessHandle{.pid = pid, .pidfd = std::move(process)};
  const int error = errno;
  return std::unexpected(why_not(pid, error == EINVAL ? ESRCH : error, "pidfd_open"));
}

std::uint64_t identity_of(const ProcessHandle& process) {
  struct stat status{};
  return ::fstat(process.pidfd.get(), &status) == 0 ? status.st_ino : 0;
}

Result<ProcessHandle> open_process_again(pid_t pid, std::uint64_t identity) {
  ProcessHandle process = UFFDA_TRY(open_process(pid));
  if (identity_of(process) == identity) return process;
  return fail(Errc::not_found, fmt::format("process {} is another one now", pid));
}

Result<ProcessHandle> open_peer(int socket) {
  const pid_t pid = UFFDA_TRY(peer_of(socket)).pid;
  int process = -1;
  socklen_t size = sizeof process;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &process, &size) == 0)
    return ProcessHandle{.pid = pid, .pidfd = UniqueFd(process)};
  if (errno != ENOPROTOOPT) return fail_errno(errno, "SO_PEERPIDFD");
  return open_process(pid);  // Linux before 6.5
}

Result<void> kill_process(int pidfd) {
  if (::syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, nullptr, 0) == 0) return {};
  if (errno == ESRCH) return fail(Errc::gone, "it has exited", errno);
  return fail_errno(errno, "pidfd_send_signal");
}

Result<UniqueFd> take_descriptor(pid_t pid, int fd) {
  const ProcessHandle process = UFFDA_TRY(open_process(pid));
  UniqueFd taken(static_cast<int>(::syscall(SYS_pidfd_getfd, process.pidfd.get(), fd, 0)));
  if (taken) return taken;
  if (errno == EBADF) return fail(Errc::not_found, fmt::format("process {} has no descriptor {}", pid, fd), errno);
  return std::unexpected(why_not(pid, errno, "pidfd_getfd"));
}

std::optional<UserfaultInfo> parse_userfault_info(std::string_view text) {
  UserfaultInfo info;
  bool known = false;
  std::uint64_t unread = 0;
  while (!text.empty()) {
    const std::string_view line = take_line(text);
    if (auto pending = value_of(line, "pending:")) unread = take_number<std::uint64_t>(*pending, 10).value_or(0);
    if (auto total = value_of(line, "total:")) info.waiting = take_number<std::uint64_t>(*total, 10).value_or(0);
    auto api = value_of(line, "API:");
    if (!api || !take_number<std::uint64_t>(*api, 16) || !api->starts_with(':')) continue;
    api->remove_prefix(1);
    const auto features = take_number<std::uint32_t>(*api, 16);
    if (!features) continue;
    info.features = *features & ~kInitialized;
    known = true;
  }
  if (!known) return std::nullopt;
  info.forgotten = info.waiting - std::min(info.waiting, unread);
  return info;
}

Result<UserfaultInfo> userfault_info(int fd) {
  const std::string text = UFFDA_TRY(read_all(fmt::format("/proc/self/fdinfo/{}", fd), ::getpid()));
  if (const auto info = parse_userfault_info(text)) return *info;
  return fail(Errc::invalid_argument, "the descriptor is not a userfaultfd");
}

std::vector<TrappedRange> parse_trapped_ranges(std::string_view smaps) {
  std::vector<TrappedRange> ranges;
  std::optional<TrappedRange> mapping;
  while (!smaps.empty()) {
    const std::string_view line = take_line(smaps);
    if (auto next = parse_mapping(line)) mapping = std::move(next);
    if (!mapping) continue;
    if (auto size = value_of(line, "KernelPageSize:"))
      mapping->page_size = {take_number<std::uint64_t>(*size, 10).value_or(kPageSize.value / 1024) * 1024};
    const auto flags = value_of(line, "VmFlags:");
    if (!flags) continue;
    TrappedRange whole = *std::exchange(mapping, std::nullopt);
    whole.minor = has_flag(*flags, "ui");
    whole.write_protect = has_flag(*flags, "uw");
    if (has_flag(*flags, "um") || whole.minor || whole.write_protect) ranges.push_back(std::move(whole));
  }
  return ranges;
}

Result<std::vector<TrappedRange>> trapped_ranges(pid_t pid) {
  return parse_trapped_ranges(UFFDA_TRY(read_all(fmt::format("/proc/{}/smaps", pid), pid)));
}

std::vector<int> userfaultfds_of(pid_t pid) {
  const std::string directory = fmt::format("/proc/{}/fd", pid);
  std::vector<int> all = numbers_in(directory);
  std::erase_if(all, [&](int fd) { return link_of(fmt::format("{}/{}", directory, fd)) != kUserfaultLink; });
  return all;
}

Result<Sharers> sharers_of(int fd, pid_t but) {
  Sharers sharers;
  const pid_t self = ::getpid();
  if (::syscall(SYS_kcmp, self, self, KCMP_FILE, fd, fd) != 0)
    return fail(Errc::unsupported, "this kernel does not tell whose descriptors are the same (kcmp)", errno);
  for (const int pid : numbers_in("/proc")) {
    if (pid == self || pid == but) continue;
    const std::string directory = fmt::format("/proc/{}/fd", pid);
    if (::access(directory.c_str(), R_OK) != 0) {
      ++sharers.unseen;
      continue;
    }
    const std::vector<int> theirs = userfaultfds_of(pid);
    const auto same = [&](int other) { return ::syscall(SYS_kcmp, self, pid, KCMP_FILE, fd, other) == 0; };
    if (std::ranges::any_of(theirs, same)) sharers.processes.push_back({.pid = pid, .name = name_of(pid)});
  }
  return sharers;
}

}  // namespace uffda::os
