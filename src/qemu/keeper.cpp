#include "qemu/keeper.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "os/socket.h"
#include "server/packet.h"
#include "uffda/deadline.h"

namespace uffda::qemu {
namespace {

constexpr Duration kBorrowWait = std::chrono::seconds(10);  // for a restore that ends, and for a keeper that does
constexpr std::uint32_t kKeeperMagic = 0x4b414655;          // "UFAK"

struct NotePacket {
  std::uint32_t magic;
  Note note;
  std::uint64_t number;
};

struct ReceivedNote {
  Note note;
  std::uint64_t number;
  os::UniqueFd fd;
};

Result<void> send_note(int socket, Note note, std::uint64_t number, int fd) {
  const NotePacket packet{.magic = kKeeperMagic, .note = note, .number = number};
  return os::send_packet(socket, std::as_bytes(std::span(&packet, 1)), {}, fd, os::Waiting::none);
}

/// Errors: again (none is there).
Result<ReceivedNote> receive_note(int socket) {
  NotePacket packet{};
  auto received =
      UFFDA_TRY(os::receive_packet(socket, std::as_writable_bytes(std::span(&packet, 1)), os::Waiting::none));
  const bool is_note = received.size == sizeof packet && !received.bytes_cut && packet.magic == kKeeperMagic;
  if (!is_note || packet.note > Note::complete || received.descriptors > 1)
    return fail(Errc::protocol, "this is no keeper of uffda's");
  return ReceivedNote{.note = packet.note, .number = packet.number, .fd = std::move(received.descriptor)};
}

/// By the file of the monitor's socket: another one at the same path has another keeper. Empty: there is no such file.
Result<std::string> keeper_name(const std::string& qmp_path) {
  struct statx file{};
  if (::statx(AT_FDCWD, qmp_path.c_str(), 0, STATX_INO | STATX_BTIME, &file) != 0) {
    if (errno == ENOENT || errno == ENOTDIR) return std::string();
    return fail_errno(errno, qmp_path);
  }
  return fmt::format("uffda-keeper/{}/{}:{}/{}/{}.{}", ::geteuid(), file.stx_dev_major, file.stx_dev_minor,
                     file.stx_ino, file.stx_btime.tv_sec, file.stx_btime.tv_nsec);
}

Result<void> check_owner(int socket, const std::string& qmp_path) {
  const os::Peer peer = UFFDA_TRY(os::peer_of(socket));
  if (peer.uid == ::geteuid()) return {};
  return fail(Errc::permission_denied,
              fmt::format("the user with uid {} listens where a keeper of uid {} for the monitor {} would", peer.uid,
                          ::geteuid(), qmp_path));
}

/// What the process does.
class KeeperProcess {
 public:
  KeeperProcess(os::UniqueFd door, os::UniqueFd client, os::UniqueFd monitor)
      : client_(std::move(client)), door_(std::move(door)) {
    kept_.monitor = std::move(monitor);
  }
  void run();

 private:
  enum class Then : bool { goes_on, ends };

  Then hear_client();
  void accept_client();
  Result<void> tell_client();

  os::UniqueFd client_;  // goes last: who waits for that finds the monitor free
  os::UniqueFd door_;
  Kept kept_;
};

void KeeperProcess::run() {
  for (;;) {
    std::array<pollfd, 3> entries{{{.fd = kept_.monitor.get(), .events = 0, .revents = 0},
                                   {.fd = client_.get(), .events = POLLIN, .revents = 0},
                                   {.fd = client_ ? -1 : door_.get(), .events = POLLIN, .revents = 0}}};
    if (::poll(entries.data(), entries.size(), -1) < 0) {
      if (errno == EINTR) continue;
      return;
    }
    if (entries[0].revents != 0) return;  // QEMU is gone
    if (entries[1].revents != 0 && hear_client() == Then::ends) return;
    if (entries[2].revents != 0) accept_client();
  }
}

KeeperProcess::Then KeeperProcess::hear_client() {
  for (;;) {
    auto note = receive_note(client_.get());
    if (!note && note.error().code() == Errc::again) return Then::goes_on;
    if (note && note->note == Note::complete) return Then::ends;
    if (note && kept_.apply(note->note, note->number, std::move(note->fd))) continue;
    client_.reset();
    return kept_.begun ? Then::goes_on : Then::ends;
  }
}

void KeeperProcess::accept_client() {
  os::UniqueFd client(::accept4(door_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!client) return;
  const auto peer = os::peer_of(client.get());
  if (!peer || peer->uid != ::geteuid()) return;
  client_ = std::move(client);
  ++kept_.restores;
  if (!tell_client()) client_.reset();
}

Result<void> KeeperProcess::tell_client() {
  const auto tell = [&](Note note, std::uint64_t number = 0, int fd = -1) {
    return send_note(client_.get(), note, number, fd);
  };
  UFFDA_TRY_VOID(tell(Note::monitor, kept_.restores, kept_.monitor.get()));
  if (kept_.begun) UFFDA_TRY_VOID(tell(Note::begun));
  if (kept_.stream) {
    UFFDA_TRY_VOID(tell(Note::spare, kept_.stream->number, kept_.stream->end.get()));
    UFFDA_TRY_VOID(tell(Note::handing, kept_.stream->number));
    if (kept_.taken) UFFDA_TRY_VOID(tell(Note::taken));
  }
  for (const Spare& spare : kept_.spares) UFFDA_TRY_VOID(tell(Note::spare, spare.number, spare.end.get()));
  return tell(Note::told);
}

/// A copy that stdio's descriptors do not collide with.
os::UniqueFd copy_above_stdio(int fd) { return os::UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1)); }

void reset_signals() {
  for (const int number : {SIGTERM, SIGINT, SIGHUP, SIGQUIT}) (void)std::signal(number, SIG_DFL);
  sigset_t none;
  sigemptyset(&none);
  (void)::sigprocmask(SIG_SETMASK, &none, nullptr);
}

/// The rest of a forked child's life. It has no terminal, no directory, and nothing open but these.
[[noreturn]] void become_keeper(int door, int client, int monitor) {
  if (::setsid() < 0) std::_Exit(EXIT_FAILURE);
  const pid_t second = ::fork();  // so that no parent has to wait for it
  if (second != 0) std::_Exit(second < 0 ? EXIT_FAILURE : EXIT_SUCCESS);
  (void)::prctl(PR_SET_NAME, "uffda-keeper");
  reset_signals();
  os::UniqueFd door_copy = copy_above_stdio(door);
  os::UniqueFd client_copy = copy_above_stdio(client);
  os::UniqueFd monitor_copy = copy_above_stdio(monitor);
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  bool is_ready = door_copy && client_copy && monitor_copy && null >= 0 && ::chdir("/") == 0;
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd) is_ready = is_ready && ::dup2(null, fd) == fd;
  if (!is_ready) std::_Exit(EXIT_FAILURE);
  os::close_all_but(
      {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO, door_copy.get(), client_copy.get(), monitor_copy.get()});
  KeeperProcess(std::move(door_copy), std::move(client_copy), std::move(monitor_copy)).run();
  std::_Exit(EXIT_SUCCESS);
}

}  // namespace

std::string Spare::name() const { return fmt::format("uffda-{}", number); }

Result<void> Kept::apply(Note note, std::uint64_t number, os::UniqueFd fd) {
  switch (note) {
    case Note::monitor:
      monitor = std::move(fd);
      restores = number;
      return {};
    case Note::begun:
      begun = true;
      return {};
    case Note::spare:
      spares.push_back({.number = number, .end = std::move(fd)});
      return {};
    case Note::handing: {
      const auto found = std::ranges::find(spares, number, &Spare::number);
      if (found == spares.end()) return fail(Errc::protocol, "a spare stream that nobody has given");
      stream = std::move(*found);
      spares.erase(found);
      taken = false;
      return {};
    }
    case Note::taken:
      taken = true;
      return {};
    case Note::let_go:
      stream.reset();
      return {};
    case Note::told:
    case Note::complete:
      return {};
  }
  return {};
}

Result<std::unique_ptr<Keeper>> Keeper::find(const std::string& qmp_path, Kept& kept) {
  const std::string name = UFFDA_TRY(keeper_name(qmp_path));
  if (name.empty()) return nullptr;
  const auto busy = [&] {
    return fail(Errc::busy, fmt::format("another uffda qemu restore has the machine whose monitor is {}", qmp_path));
  };
  auto socket = os::connect_abstract(name);
  if (!socket && socket.error().code() == Errc::gone) return nullptr;
  if (!socket && socket.error().code() == Errc::again) return busy();
  if (!socket) return std::unexpected(socket.error());
  UFFDA_TRY_VOID(check_owner(socket->get(), qmp_path));
  const Deadline deadline = Deadline::after(kBorrowWait);
  for (;;) {
    auto note = receive_note(socket->get());
    if (!note && note.error().code() == Errc::again) {
      if (!handoff::wait_socket(socket->get(), POLLIN, deadline)) return busy();
      continue;
    }
    if (!note && note.error().code() == Errc::gone) return nullptr;  // it has just ended
    if (!note) return std::unexpected(note.error());
    if (note->note == Note::told) return std::unique_ptr<Keeper>(new Keeper(*std::move(socket)));
    UFFDA_TRY_VOID(kept.apply(note->note, note->number, std::move(note->fd)));
  }
}

Result<std::unique_ptr<Keeper>> Keeper::start(const std::string& qmp_path, int monitor) {
  auto door = os::listen_abstract(UFFDA_TRY(keeper_name(qmp_path)));
  if (!door) return std::unexpected(door.error().within(fmt::format("keeping the monitor {}", qmp_path)));
  os::SocketPair ends = UFFDA_TRY(os::make_socket_pair());
  (void)std::fflush(nullptr);
  const pid_t child = ::fork();
  if (child < 0) return fail_errno(errno, "fork");
  if (child == 0) become_keeper(door->get(), ends.second.get(), monitor);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) continue;
  if (!WIFEXITED(status) || WEXITSTATUS(status) != EXIT_SUCCESS) return fail(Errc::no_memory, "starting the keeper");
  return std::unique_ptr<Keeper>(new Keeper(std::move(ends.first)));
}

Result<void> Keeper::note(Note note, std::uint64_t number, int fd) {
  return send_note(socket_.get(), note, number, fd);
}

Result<void> Keeper::end() {
  const auto sent = note(Note::complete);
  if (!sent && sent.error().code() == Errc::gone) return {};
  UFFDA_TRY_VOID(sent);
  const Deadline deadline = Deadline::after(kBorrowWait);
  for (;;) {
    const auto more = receive_note(socket_.get());
    if (!more && more.error().code() == Errc::gone) return {};
    UFFDA_TRY_VOID(handoff::wait_socket(socket_.get(), POLLIN, deadline));
  }
}

}  // namespace uffda::qemu
