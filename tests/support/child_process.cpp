#include "support/child_process.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <functional>
#include <utility>

#include "os/fd.h"

namespace uffda::test {
namespace {

[[noreturn]] void run_child(char* const* words, int log, int refused, pid_t parent) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(127);
  ::dup2(log, STDOUT_FILENO);
  ::dup2(log, STDERR_FILENO);
  ::execvp(words[0], words);
  const int error = errno;
  (void)::write(refused, &error, sizeof error);
  ::_exit(127);
}

/// Connects again and again until somebody accepts. A refused attempt is the only event there is to wait for.
Result<void> wait_for(const std::function<bool()>& connected, const std::string& what, Deadline deadline) {
  while (!connected()) {
    if (deadline.passed()) return fail(Errc::timed_out, "nobody listens on " + what);
    ::poll(nullptr, 0, 5);
  }
  return {};
}

bool connects(const sockaddr* address, socklen_t length) {
  const os::UniqueFd fd(::socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  return fd && ::connect(fd.get(), address, length) == 0;
}

sockaddr_in loopback(int port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

}  // namespace

Result<ChildProcess> ChildProcess::start(const std::vector<std::string>& arguments, const std::string& log) {
  std::vector<char*> words;
  for (const std::string& argument : arguments) words.push_back(const_cast<char*>(argument.c_str()));
  words.push_back(nullptr);
  const os::UniqueFd output(
      ::open(log.empty() ? "/dev/null" : log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  if (!output) return fail_errno(errno, log);
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return fail_errno(errno, "pipe");
  const os::UniqueFd heard(ends[0]);
  os::UniqueFd refused(ends[1]);
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) return fail_errno(errno, "fork");
  if (pid == 0) run_child(words.data(), output.get(), refused.get(), parent);
  refused.reset();
  ChildProcess child(pid);
  int error = 0;
  if (::read(heard.get(), &error, sizeof error) == static_cast<ssize_t>(sizeof error))
    return fail(Errc::not_found, arguments.front() + " cannot be run: scripts/setup installs it");
  return child;
}

ChildProcess::ChildProcess(ChildProcess&& other) noexcept : pid_(std::exchange(other.pid_, -1)) {}

ChildProcess& ChildProcess::operator=(ChildProcess&& other) noexcept {
  if (this == &other) return *this;
  kill();
  pid_ = std::exchange(other.pid_, -1);
  return *this;
}

ChildProcess::~ChildProcess() { kill(); }

void ChildProcess::signal(int number) const {
  if (pid_ > 0) ::kill(pid_, number);
}

void ChildProcess::kill() {
  if (pid_ <= 0) return;
  ::kill(pid_, SIGKILL);
  while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
}

Result<int> ChildProcess::wait(Deadline deadline) {
  const os::UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
  pollfd ended{process.get(), POLLIN, 0};
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline.when() - Clock::now()).count();
  if (::poll(&ended, 1, static_cast<int>(std::max<std::int64_t>(left, 0))) != 1)
    return fail(Errc::timed_out, "the process did not end");
  int status = 0;
  ::waitpid(std::exchange(pid_, -1), &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

Result<void> wait_for_socket(const std::string& path, Deadline deadline) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return fail(Errc::invalid_argument, path + " is too long for a socket");
  std::ranges::copy(path, address.sun_path);
  const auto connected = [&] { return connects(reinterpret_cast<const sockaddr*>(&address), sizeof address); };
  return wait_for(connected, path, deadline);
}

Result<void> wait_for_port(int port, Deadline deadline) {
  const sockaddr_in address = loopback(port);
  const auto connected = [&] { return connects(reinterpret_cast<const sockaddr*>(&address), sizeof address); };
  return wait_for(connected, "port " + std::to_string(port), deadline);
}

int free_port() {
  const os::UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = loopback(0);
  socklen_t length = sizeof address;
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0 ||
      ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &length) != 0)
    return -1;
  return ntohs(address.sin_port);
}

}  // namespace uffda::test
