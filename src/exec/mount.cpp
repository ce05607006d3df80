#include "exec/mount.h"

#include <poll.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <optional>

#include "exec/paths.h"
#include "exec/say.h"
#include "exec/service.h"

namespace uffda {

using namespace exec;

namespace {

/// SIGINT, SIGTERM and SIGHUP as a descriptor; blocked from here on, in threads and children, too.
Result<os::UniqueFd> catch_end_signals() {
  sigset_t signals;
  ::sigemptyset(&signals);
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) ::sigaddset(&signals, number);
  (void)::sigprocmask(SIG_BLOCK, &signals, nullptr);
  os::UniqueFd descriptor(::signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!descriptor) return fail_errno(errno, "signalfd");
  return descriptor;
}

/// Until a signal, an unmount, or the server's end. The exit status.
int serve(exec::Service& service, fuse::FileHost& file, int signals) {
  for (;;) {
    std::array<pollfd, 4> entries{{{.fd = signals, .events = POLLIN, .revents = 0},
                                   {.fd = file.ended_descriptor(), .events = POLLIN, .revents = 0},
                                   {.fd = service.message_descriptor(), .events = POLLIN, .revents = 0},
                                   {.fd = service.watch_descriptor(), .events = POLLIN, .revents = 0}}};
    if (::poll(entries.data(), entries.size(), -1) < 0) continue;
    if (entries[2].revents != 0) service.forward_messages();
    if (entries[3].revents != 0 && service.hear() == exec::Service::News::server_gone) return 1;
    if (entries[0].revents != 0 || entries[1].revents != 0) return 0;
  }
}

}  // namespace

Result<int> run_mount(const MountOptions& options) {
  ResolvedMap map = UFFDA_TRY(resolve_map(options.path, options.source));
  map.mode = options.mode;
  map.name = options.server_socket.empty() ? "map0" : options.source;
  const os::UniqueFd signals = UFFDA_TRY(catch_end_signals());
  const PrivateDirectory directory = UFFDA_TRY(PrivateDirectory::create());
  MountPoint point = UFFDA_TRY(MountPoint::prepare(map.path));
  std::optional<int> refused;
  auto service = exec::Service::open({.maps = {map},
                                      .server_socket = options.server_socket,
                                      .own_socket = directory.file("server.sock"),
                                      .server_arguments = options.server_arguments},
                                     refused);
  auto file = service ? fuse::FileHost::mount(map.path, (*service)->file_options(0, ::geteuid(), ::getegid()))
                      : Result<std::unique_ptr<fuse::FileHost>>(std::unexpected(service.error()));
  if (!file) {
    if (service) (*service)->close();
    point.remove();
    if (refused) return *refused;
    return std::unexpected(file.error());
  }
  say("{} shows {} ({} bytes) until this process ends", map.path, map.source, (*service)->maps()[0].size);
  const int status = serve(**service, **file, signals.get());
  (*file)->stop();
  (*service)->store_all();
  (*service)->close();
  point.remove();
  return status;
}

}  // namespace uffda
