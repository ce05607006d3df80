#include "server/serve.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

#include "base/log.h"
#include "os/fd.h"
#include "server/holder.h"
#include "server/process.h"
#include "server/report.h"
#include "server/server.h"

namespace uffda {
namespace {

void announce(Server& server, const ServeOptions& options) {
  if (options.ready_fd >= 0) {
    os::UniqueFd ready(options.ready_fd);
    [[maybe_unused]] const ssize_t written = ::write(ready.get(), "ready\n", 6);  // who does not listen does not care
    return;
  }
  if (options.quiet) return;
  for (const auto& [name, object] : server.service().exports().all()) {
    for (const std::string& path : {options.socket_path, options.firecracker_path}) {
      if (path.empty()) continue;
      fmt::print(stderr, "uffda: serving {} ({} bytes, {}) at {}\n", name, object->size().value, object->name(), path);
    }
  }
}

void say_who_is_left(std::size_t clients) {
  if (clients == 0) return;
  log(LogLevel::warning,
      "the server ends with {} client{} attached: absent pages of theirs stay absent until whoever holds their "
      "userfaultfd decides",
      clients, clients == 1 ? "" : "s");
}

/// With the attachment served, if there is one.
Result<std::unique_ptr<Server>> create_server(const ServeOptions& options, Held* held) {
  auto server = UFFDA_TRY(Server::create(options, held));
  if (!options.attachment) return server;
  const KeptState* const kept = held != nullptr ? held->state().get() : nullptr;
  const auto served = serve_attachment(server->service(), kept, *options.attachment);
  const bool over = !served && served.error().code() == Errc::gone && held != nullptr && held->is_restarted();
  if (!served && !over) return std::unexpected(served.error().within("attaching"));
  return server;
}

}  // namespace

Result<int> run_serve(ServeOptions options) {
  raise_descriptor_limit();
  for (const PassedSocket& passed : options.passed)
    (passed.protocol == Protocol::handoff ? options.socket_path : options.firecracker_path) = path_of(passed.fd);
  std::unique_ptr<Held> held;
  if (options.holder) {
    HeldOrEnded begun = UFFDA_TRY(hold(options));
    if (begun.held == nullptr) return begun.status;
    held = std::move(begun.held);
    if (held->is_restarted()) options.ready_fd = -1;
  }
  EndSignals signals = UFFDA_TRY(EndSignals::create());
  auto server = create_server(options, held.get());
  if (!server && held && held->is_restarted()) {
    // Nothing more: what is closed here would be closed for the next server, too.
    log(LogLevel::error, "the server does not start: {}", server.error().message());
    ::_exit(1);
  }
  if (!server) {
    signals.take_and_restore();
    return std::unexpected(server.error());
  }
  if (held) held->state()->note_serving();
  if (!held || !held->is_restarted()) announce(**server, options);
  const std::size_t left = (*server)->run(signals.fd());
  signals.take_and_restore();
  say_who_is_left(left);
  UFFDA_TRY_VOID((*server)->service().fills().finish());
  if (!options.report_path.empty()) UFFDA_TRY_VOID(write_report(options.report_path, (*server)->report()));
  return 0;
}

}  // namespace uffda
