#include "server/holder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <optional>
#include <utility>

#include "base/log.h"
#include "server/fd_store.h"
#include "server/give.h"

namespace uffda {
namespace {

constexpr unsigned kMostFailures = 5;  // in a row to start a server again
constexpr Duration kFirstPause = std::chrono::milliseconds(50);

sigset_t ending_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int number : {SIGTERM, SIGINT, SIGCHLD}) sigaddset(&signals, number);
  return signals;
}

}  // namespace

Result<void> Held::confirm() {
  if (const auto forgotten = forget_stored(stored_); !forgotten)
    log(LogLevel::warning, "the service manager keeps what it stored: {}", forgotten.error().message());
  if (!giver_) return {};
  UFFDA_TRY_VOID(confirm_taken(giver_.get()));
  giver_.reset();
  return {};
}

Result<Listener> Held::listen(Protocol protocol, const std::string& path, const std::vector<uid_t>& allowed_others,
                              const NewListener& make) {
  if (state_->listener(protocol) < 0) {
    Listener listener = UFFDA_TRY(make());
    const int copy = ::fcntl(listener.fd(), F_DUPFD_CLOEXEC, 0);
    if (copy < 0) return fail_errno(errno, "keeping the socket for a successor");
    state_->keep_listener(protocol, copy);
    return listener;
  }
  os::UniqueFd socket(::fcntl(state_->listener(protocol), F_DUPFD_CLOEXEC, 0));
  if (!socket) return fail_errno(errno, "the socket of the server before");
  return Listener::adopt(protocol, std::move(socket), path, allowed_others);
}

class Holder {
 public:
  /// `inherited`: descriptors that are no server's.
  /// `stored`: what of it is in the service manager's store, by its names there.
  Holder(std::shared_ptr<KeptState> state, std::vector<int> inherited, std::vector<std::string> stored)
      : state_(std::move(state)), inherited_(std::move(inherited)), stored_(std::move(stored)) {}

  /// See hold().
  Result<HeldOrEnded> run(os::UniqueFd giver, int ready_fd);

 private:
  Result<pid_t> start();
  int wait_for(pid_t pid);
  std::unique_ptr<Held> become_server(os::UniqueFd giver, int ready_fd);
  void close_what_nobody_keeps(int but);
  /// Nothing: the server that ended is to be followed by another one.
  std::optional<Result<HeldOrEnded>> after_end(int status);
  Result<void> hand_over();
  bool pause_before_restart();

  std::shared_ptr<KeptState> state_;
  std::vector<int> inherited_;
  std::vector<std::string> stored_;
  sigset_t mask_{};
  bool end_ = false;  // somebody wants us to
  unsigned started_ = 0;
  unsigned failures_ = 0;
};

Result<pid_t> Holder::start() {
  (void)std::fflush(nullptr);
  ++started_;
  // One descriptor table, two processes: what a fork() cannot make.
  const long pid = ::syscall(SYS_clone, CLONE_FILES | SIGCHLD, nullptr, nullptr, nullptr, nullptr);
  if (pid < 0) return fail_errno(errno, "starting the server");
  return static_cast<pid_t>(pid);
}

int Holder::wait_for(pid_t pid) {
  const sigset_t signals = ending_signals();
  for (;;) {
    siginfo_t info{};
    const int number = ::sigwaitinfo(&signals, &info);
    if (number == SIGTERM || number == SIGINT) {
      end_ = true;
      if (info.si_code <= 0) (void)::kill(pid, number);  // from a terminal the server has got it, too
    }
    int status = 0;
    if (::waitpid(pid, &status, WNOHANG) == pid) return status;
  }
}

std::unique_ptr<Held> Holder::become_server(os::UniqueFd giver, int ready_fd) {
  (void)::prctl(PR_SET_PDEATHSIG, SIGTERM);
  (void)::sigprocmask(SIG_SETMASK, &mask_, nullptr);
  auto held = std::make_unique<Held>(state_);
  const bool takes_over = static_cast<bool>(giver);
  held->giver_ = std::move(giver);
  held->stored_ = stored_;
  held->restarted_ = started_ > 1;
  if (state_->begin_server() == 0) return held;
  if (takes_over) inherited_.push_back(held->giver_.get());
  if (!held->restarted_ && ready_fd >= 0) inherited_.push_back(ready_fd);
  close_what_nobody_keeps(-1);
  return held;
}

void Holder::close_what_nobody_keeps(int but) {
  std::vector<int> kept = state_->descriptors();
  kept.insert(kept.end(), inherited_.begin(), inherited_.end());
  if (but >= 0) kept.push_back(but);
  os::close_all_but(std::move(kept));
}

bool Holder::pause_before_restart() {
  const auto pause = kFirstPause * (1U << failures_);
  const auto nanoseconds = std::chrono::duration_cast<std::chrono::nanoseconds>(pause).count();
  const timespec limit{.tv_sec = nanoseconds / 1'000'000'000, .tv_nsec = nanoseconds % 1'000'000'000};
  sigset_t signals = ending_signals();
  sigdelset(&signals, SIGCHLD);
  if (::sigtimedwait(&signals, nullptr, &limit) > 0) end_ = true;
  return !end_;
}

Result<void> Holder::hand_over() {
  const bool stores = state_->taker() < 0;
  // The files of the server that ended go first: it may have locked some.
  close_what_nobody_keeps(state_->taker());
  if (!stores) return give_all(*state_);
  UFFDA_TRY_VOID(forget_stored(stored_));  // again: the server may not have the right to
  return store_all(*state_);
}

std::optional<Result<HeldOrEnded>> Holder::after_end(int status) {
  if (WIFEXITED(status) && WEXITSTATUS(status) == kHandOver) {
    const bool ends = std::exchange(end_, false) && state_->taker() < 0;
    const auto gone = hand_over();
    if (gone) return HeldOrEnded{};
    if (ends) return std::unexpected(gone.error().within("what clients had is lost with this server"));
    log(LogLevel::warning, "the server goes on, for who wanted to take over did not: {}", gone.error().message());
    return std::nullopt;
  }
  const bool served = state_->serving();
  const bool first = started_ == 1;
  if (WIFEXITED(status) && (WEXITSTATUS(status) == 0 || served || first || end_))
    return HeldOrEnded{.held = nullptr, .status = WEXITSTATUS(status)};
  const std::string how = WIFSIGNALED(status) ? fmt::format("was killed by signal {}", WTERMSIG(status))
                                              : fmt::format("ended with status {}", WEXITSTATUS(status));
  failures_ = served ? 0 : failures_ + 1;
  if (end_ || (!served && first) || failures_ >= kMostFailures)
    return fail(Errc::gone, fmt::format("the server {}{}", how, served ? "" : " before it served anybody"));
  log(LogLevel::warning, "the server {}: it is started again, and goes on with what it had", how);
  if (failures_ != 0 && !pause_before_restart()) return fail(Errc::gone, "the server " + how);
  return std::nullopt;
}

Result<HeldOrEnded> Holder::run(os::UniqueFd giver, int ready_fd) {
  const sigset_t signals = ending_signals();
  if (::sigprocmask(SIG_BLOCK, &signals, &mask_) != 0) return fail_errno(errno, "sigprocmask");
  for (;;) {
    const pid_t pid = UFFDA_TRY(start());
    if (pid == 0) return HeldOrEnded{.held = become_server(std::move(giver), ready_fd), .status = 0};
    // The server's now: it closes it in the table that we share.
    (void)giver.release();
    const int status = wait_for(pid);
    if (auto result = after_end(status)) {
      (void)::sigprocmask(SIG_SETMASK, &mask_, nullptr);
      return std::move(*result);
    }
  }
}

Result<HeldOrEnded> hold(ServeOptions& options) {
  // What a server opens later may have any other number, and goes with it.
  std::vector<int> inherited = os::open_descriptors();
  std::erase(inherited, options.ready_fd);
  std::optional<Taken> stored;
  if (!options.takeover) stored = UFFDA_TRY(take_stored(options.ready_fd));
  if (!options.takeover && !stored)
    return Holder(UFFDA_TRY(KeptState::create()), std::move(inherited), {}).run({}, options.ready_fd);
  Taken taken = stored ? *std::move(stored) : UFFDA_TRY(take_all(options.socket_path, options.ready_fd));
  options.ready_fd = taken.ready_fd;
  const std::vector<int> placed = taken.state->descriptors();
  std::erase_if(inherited, [&](int fd) { return std::ranges::binary_search(placed, fd) || ::fcntl(fd, F_GETFD) < 0; });
  return Holder(std::move(taken.state), std::move(inherited), std::move(taken.stored))
      .run(std::move(taken.giver), options.ready_fd);
}

}  // namespace uffda
