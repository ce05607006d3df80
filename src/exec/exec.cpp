#include "exec/exec.h"

#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <optional>

#include "exec/channel.h"
#include "exec/child.h"
#include "exec/host.h"
#include "exec/paths.h"
#include "exec/say.h"

namespace uffda {

using namespace exec;

namespace {

constexpr int kUsage = 2;
constexpr int kNotStarted = 125;  // as env(1) and timeout(1) say it
constexpr int kHostGrace = 1000;  // milliseconds for the host to clean up when nobody but the program used PATH

/// Passed on when another process sent them. From a terminal the program has got them already.
constexpr std::array kForwarded{SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM, SIGWINCH, SIGCONT};

/// Kills this process by a signal, without a core: the program's is the one that matters. Returns if the signal does
/// not kill.
void die_by(int number) {
  const rlimit none{.rlim_cur = 0, .rlim_max = 0};
  (void)::setrlimit(RLIMIT_CORE, &none);
  (void)::prctl(PR_SET_DUMPABLE, 0);
  (void)std::signal(number, SIG_DFL);
  sigset_t one;
  ::sigemptyset(&one);
  ::sigaddset(&one, number);
  (void)::sigprocmask(SIG_UNBLOCK, &one, nullptr);
  (void)std::raise(number);
}

class Supervisor {
 public:
  explicit Supervisor(const ExecOptions& options) : options_(options) {}
  Result<int> run();

 private:
  Result<void> resolve();
  Result<void> catch_signals();
  Result<void> start_host();
  /// One message of the host while the program does not run yet; a signal meanwhile ends this process.
  Result<Message> hear_host();
  void give_up_on_signal();
  /// Starts the program. A value: it is not to run, and this is the exit status.
  Result<std::optional<int>> start_program();
  Result<void> fork_program(Namespace where);
  int wait_for_program();
  void reap_program();
  void take_signals();
  void take_host_message();
  void wait_for_host();
  [[nodiscard]] int end_like_program() const;

  const ExecOptions& options_;
  std::vector<ResolvedMap> maps_;
  sigset_t mask_{};  // as we were started
  struct sigaction child_action_{};
  os::UniqueFd signals_;
  os::UniqueFd host_;
  os::UniqueFd host_program_;  // the program's end of its channel to the host
  std::string relay_;
  pid_t host_pid_ = -1;
  pid_t program_ = -1;
  std::optional<int> status_;
};

Result<void> Supervisor::resolve() {
  if (options_.program.empty())
    return fail(Errc::invalid_argument, "no program was given: uffda exec --map PATH=URI -- program");
  if (options_.maps.empty()) return fail(Errc::invalid_argument, "nothing to map: give --map PATH=URI");
  for (const ExecMap& map : options_.maps) {
    ResolvedMap resolved = UFFDA_TRY(resolve_map(map.path, map.source));
    const bool running = !options_.server_socket.empty();
    resolved.mode = map.mode;
    resolved.name = running ? map.source : "map" + std::to_string(maps_.size());
    if (resolved.name.find(';') != std::string::npos) {
      return fail(Errc::invalid_argument, "an export's name with ';' in it cannot be mapped: " + resolved.name);
    }
    if (std::ranges::any_of(maps_, [&](const ResolvedMap& other) { return other.path == resolved.path; })) {
      return fail(Errc::invalid_argument, resolved.path + " is mapped twice");
    }
    maps_.push_back(std::move(resolved));
  }
  return {};
}

Result<void> Supervisor::catch_signals() {
  // Somebody may have us started with SIGCHLD ignored, in which case there would be no status to wait for.
  struct sigaction standard{};
  standard.sa_handler = SIG_DFL;
  (void)::sigaction(SIGCHLD, &standard, &child_action_);
  sigset_t caught;
  ::sigemptyset(&caught);
  ::sigaddset(&caught, SIGCHLD);
  for (const int number : kForwarded) ::sigaddset(&caught, number);
  (void)::sigprocmask(SIG_BLOCK, &caught, &mask_);
  signals_.reset(::signalfd(-1, &caught, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!signals_) return fail_errno(errno, "signalfd");
  return {};
}

Result<void> Supervisor::start_host() {
  os::SocketPair host = UFFDA_TRY(os::make_socket_pair());
  os::SocketPair program = UFFDA_TRY(os::make_socket_pair());
  (void)std::fflush(nullptr);
  host_pid_ = ::fork();
  if (host_pid_ < 0) return fail_errno(errno, "fork");
  if (host_pid_ == 0) {
    signals_.reset();
    host.first.reset();
    program.first.reset();
    (void)::sigprocmask(SIG_SETMASK, &mask_, nullptr);
    run_host({.maps = maps_, .options = &options_}, std::move(host.second), std::move(program.second));
  }
  host_ = std::move(host.first);
  host_program_ = std::move(program.first);
  return {};
}

Result<Message> Supervisor::hear_host() {
  for (;;) {
    std::array<pollfd, 2> entries{
        {{.fd = signals_.get(), .events = POLLIN, .revents = 0}, {.fd = host_.get(), .events = POLLIN, .revents = 0}}};
    if (::poll(entries.data(), entries.size(), -1) < 0) continue;
    if (entries[0].revents != 0) give_up_on_signal();
    if (entries[1].revents == 0) continue;
    const auto message = hear(host_.get());
    if (!message) return fail(Errc::gone, "the host process died");
    return *message;
  }
}

void Supervisor::give_up_on_signal() {
  signalfd_siginfo signal{};
  while (::read(signals_.get(), &signal, sizeof signal) == static_cast<ssize_t>(sizeof signal)) {
    const int number = static_cast<int>(signal.ssi_signo);
    if (number == SIGCHLD || number == SIGCONT || number == SIGWINCH) continue;
    if (program_ > 0) (void)::kill(program_, SIGKILL);
    die_by(number);  // the host hears that we are gone and cleans up
    ::_exit(128 + number);
  }
}

Result<void> Supervisor::fork_program(Namespace where) {
  ChildSetup setup{.where = where,
                   .maps = &maps_,
                   .relay_socket = options_.preload ? relay_ : "",
                   .shim = options_.preload ? find_shim() : "",
                   .program = options_.program,
                   .signal_mask = mask_};
  if (options_.preload && setup.shim.empty())
    say("libuffda-shim.so is not beside uffda: memory is served through FUSE, slower");
  program_ = ::fork();
  if (program_ < 0) return fail_errno(errno, "fork");
  if (program_ == 0) {
    (void)::sigaction(SIGCHLD, &child_action_, nullptr);
    become_program(setup, host_program_.get());
  }
  host_program_.reset();
  return {};
}

Result<std::optional<int>> Supervisor::start_program() {
  Message ready = UFFDA_TRY(hear_host());
  for (; ready.what == Say::kElsewhere; ready = UFFDA_TRY(hear_host()))
    maps_[static_cast<std::size_t>(ready.value)].mount_path = ready.words();
  if (ready.what == Say::kExit) return ready.value;
  if (ready.what != Say::kReady) return std::unexpected(error_of(ready));
  relay_ = ready.words();
  UFFDA_TRY_VOID(fork_program(Namespace::own));
  const Message verdict = UFFDA_TRY(hear_host());
  if (verdict.what == Say::kStarted) return std::nullopt;
  (void)::waitpid(program_, nullptr, 0);
  if (verdict.what != Say::kStartPlain) return std::unexpected(error_of(verdict));
  UFFDA_TRY_VOID(fork_program(Namespace::plain));
  return std::nullopt;
}

void Supervisor::reap_program() {
  int status = 0;
  if (::waitpid(program_, &status, WNOHANG) == program_) status_ = status;
}

void Supervisor::take_signals() {
  signalfd_siginfo signal{};
  while (::read(signals_.get(), &signal, sizeof signal) == static_cast<ssize_t>(sizeof signal)) {
    const int number = static_cast<int>(signal.ssi_signo);
    if (number == SIGCHLD) {
      reap_program();
    } else if (signal.ssi_code <= 0 && !status_) {  // sent by a process, not by the kernel for a terminal
      (void)::kill(program_, number);
    }
  }
}

void Supervisor::take_host_message() {
  const auto message = hear(host_.get());
  if (message && message->what == Say::kKill) (void)::kill(program_, SIGKILL);
  if (message) return;
  say("the host process died: reads of what was mapped fail");
  host_.reset();
}

int Supervisor::wait_for_program() {
  reap_program();  // the signal of one that ended at once was taken while the host was heard
  while (!status_) {
    std::array<pollfd, 2> entries{
        {{.fd = signals_.get(), .events = POLLIN, .revents = 0}, {.fd = host_.get(), .events = POLLIN, .revents = 0}}};
    if (::poll(entries.data(), entries.size(), -1) < 0) continue;
    if (entries[1].revents != 0) take_host_message();
    if (entries[0].revents != 0) take_signals();
  }
  return *status_;
}

void Supervisor::wait_for_host() {
  if (!host_ || !tell(host_.get(), {.what = Say::kEnded, .value = *status_})) return;
  // What it wrote is stored first, however long that takes: the host has deadlines for it.
  bool stored = std::ranges::none_of(maps_, &ResolvedMap::is_written_to);
  for (;;) {
    pollfd entry{.fd = host_.get(), .events = POLLIN, .revents = 0};
    const int ready = ::poll(&entry, 1, stored ? kHostGrace : -1);
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) return;  // what the program left behind still uses PATH: the host stays
    const auto message = hear(host_.get());
    if (!message || message->what == Say::kDone) break;
    if (message->what == Say::kStored) stored = true;
  }
  host_.reset();
  (void)::waitpid(host_pid_, nullptr, 0);
}

int Supervisor::end_like_program() const {
  if (!WIFSIGNALED(*status_)) return WEXITSTATUS(*status_);
  die_by(WTERMSIG(*status_));
  return 128 + WTERMSIG(*status_);
}

Result<int> Supervisor::run() {
  UFFDA_TRY_VOID(resolve());
  UFFDA_TRY_VOID(catch_signals());
  UFFDA_TRY_VOID(start_host());
  const auto refused = start_program();
  if (!refused || *refused) {
    host_.reset();
    host_program_.reset();
    (void)::waitpid(host_pid_, nullptr, 0);
    (void)::sigprocmask(SIG_SETMASK, &mask_, nullptr);
    if (!refused) return std::unexpected(refused.error());
    return **refused;
  }
  (void)wait_for_program();
  wait_for_host();
  return end_like_program();
}

}  // namespace

Result<int> run_exec(const ExecOptions& options) { return Supervisor(options).run(); }

int exit_status_of(const Error& error) { return error.code() == Errc::invalid_argument ? kUsage : kNotStarted; }

}  // namespace uffda
