#include "exec/server_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <limits>

namespace uffda::exec {

namespace {

constexpr Duration kStartWait = std::chrono::seconds(60);  // a source may be far away
constexpr Duration kServerEndWait = std::chrono::seconds(5);

struct Pipe {
  os::UniqueFd read;
  os::UniqueFd write;
};

Result<Pipe> make_pipe() {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return fail_errno(errno, "pipe");
  return Pipe{os::UniqueFd(ends[0]), os::UniqueFd(ends[1])};
}

std::string_view suffix_of(MapMode mode) {
  switch (mode) {
    case MapMode::writable:
      return ",rw";
    case MapMode::growable:
      return ",grow";
    default:
      return "";
  }
}

std::vector<std::string> command_line(const ServerSetup& setup, int ready) {
  std::vector<std::string> words{"uffda", "serve"};
  for (const ResolvedMap& map : setup.maps) {
    words.emplace_back("--export");
    words.push_back(fmt::format("{}={}{}", map.name, map.source, suffix_of(map.mode)));
  }
  words.insert(words.end(), {"--socket", setup.socket, "--ready-fd", std::to_string(ready), "--until-idle"});
  words.insert(words.end(), setup.arguments.begin(), setup.arguments.end());
  return words;
}

/// In the child: becomes the server.
[[noreturn]] void become_server(std::vector<std::string>& words, int ready, int messages) {
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  ::dup2(null, STDIN_FILENO);
  ::dup2(null, STDOUT_FILENO);
  ::dup2(messages, STDERR_FILENO);
  ::fcntl(ready, F_SETFD, 0);
  std::vector<char*> arguments;
  arguments.reserve(words.size() + 1);
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  ::execv("/proc/self/exe", arguments.data());
  ::_exit(125);
}

int poll_milliseconds(Deadline deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline.when() - Clock::now()).count();
  return static_cast<int>(std::clamp<std::int64_t>(left, 0, std::numeric_limits<int>::max()));
}

}  // namespace

std::string describe_wait_status(int status) {
  if (!WIFSIGNALED(status)) return fmt::format("ended with status {}", WEXITSTATUS(status));
  const char* name = ::sigdescr_np(WTERMSIG(status));
  return fmt::format("was killed by signal {} ({})", WTERMSIG(status), name != nullptr ? name : "unknown");
}

Result<ServerProcess> ServerProcess::start(const ServerSetup& setup, std::optional<int>& exit_status) {
  Pipe ready = UFFDA_TRY(make_pipe());
  Pipe messages = UFFDA_TRY(make_pipe());
  std::vector<std::string> words = command_line(setup, ready.write.get());
  const pid_t pid = ::fork();
  if (pid < 0) return fail_errno(errno, "fork");
  if (pid == 0) become_server(words, ready.write.get(), messages.write.get());
  ready.write.reset();
  messages.write.reset();
  ::fcntl(messages.read.get(), F_SETFL, O_NONBLOCK);
  os::UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  ServerProcess server(pid, std::move(pidfd), std::move(messages.read));
  UFFDA_TRY_VOID(server.await_ready(ready.read.get(), exit_status));
  return server;
}

Result<void> ServerProcess::await_ready(int ready, std::optional<int>& exit_status) {
  const Deadline deadline = Deadline::after(kStartWait);
  for (;;) {
    std::array<pollfd, 2> entries{
        {{.fd = ready, .events = POLLIN, .revents = 0}, {.fd = messages(), .events = POLLIN, .revents = 0}}};
    if (::poll(entries.data(), entries.size(), poll_milliseconds(deadline)) < 0 && errno != EINTR)
      return fail_errno(errno, "poll");
    if (entries[1].revents != 0) forward_messages();
    if (entries[0].revents != 0) {
      char byte = 0;
      if (::read(ready, &byte, 1) == 1) return {};
      const auto status = wait(Deadline::after(kServerEndWait));
      if (status && WIFEXITED(*status) && WEXITSTATUS(*status) != 0) exit_status = WEXITSTATUS(*status);
      return fail(Errc::gone, status ? "the server " + describe_wait_status(*status) : "the server does not start");
    }
    if (deadline.passed()) return fail(Errc::timed_out, "the server was not ready after 60 s");
  }
}

void ServerProcess::forward_messages() {
  std::array<char, 4096> text;
  while (messages_) {
    const ssize_t got = ::read(messages_.get(), text.data(), text.size());
    if (got > 0) {
      [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, text.data(), static_cast<std::size_t>(got));
      continue;
    }
    if (got == 0) messages_.reset();
    if (got == 0 || errno != EINTR) return;
  }
}

std::optional<int> ServerProcess::wait(Deadline deadline) {
  while (pidfd_) {
    std::array<pollfd, 2> entries{
        {{.fd = pidfd_.get(), .events = POLLIN, .revents = 0}, {.fd = messages(), .events = POLLIN, .revents = 0}}};
    (void)::poll(entries.data(), entries.size(), poll_milliseconds(deadline));
    if (entries[1].revents != 0) forward_messages();
    int status = 0;
    if (entries[0].revents != 0 && ::waitpid(pid_, &status, 0) == pid_) {
      forward_messages();
      status_ = status;
      pidfd_.reset();
    }
    if (deadline.passed()) break;
  }
  return status_;
}

ServerProcess::~ServerProcess() {
  if (!pidfd_) return;
  (void)::syscall(SYS_pidfd_send_signal, pidfd_.get(), SIGTERM, nullptr, 0);
  if (wait(Deadline::after(kServerEndWait))) return;
  (void)::syscall(SYS_pidfd_send_signal, pidfd_.get(), SIGKILL, nullptr, 0);
  (void)wait(Deadline::after(kServerEndWait));
}

}  // namespace uffda::exec
