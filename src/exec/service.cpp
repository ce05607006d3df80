#include "exec/service.h"

#include <fmt/format.h>

#include <algorithm>

#include "exec/say.h"

namespace uffda::exec {

namespace {

constexpr std::size_t kMaxPrinted = 1000;  // distinct ranges; who has more has read enough
constexpr Duration kEndWait = std::chrono::seconds(5);
constexpr int kStoreTries = 10;  // each as long as a deadline

/// A service with a running server: connects and watches.
Result<HandoffClient> watch(const std::string& socket) {
  HandoffClient client = UFFDA_TRY(HandoffClient::connect(socket));
  UFFDA_TRY_VOID(client.watch());
  return client;
}

}  // namespace

Result<std::unique_ptr<Service>> Service::open(ServiceSetup setup, std::optional<int>& exit_status) {
  std::optional<ServerProcess> process;
  if (setup.server_socket.empty()) {
    const ServerSetup server{.maps = setup.maps, .socket = setup.own_socket, .arguments = setup.server_arguments};
    process = UFFDA_TRY(ServerProcess::start(server, exit_status));
    setup.server_socket = setup.own_socket;
  }
  // A watcher from the start: a server of ours ends when nobody watches it.
  HandoffClient watcher = UFFDA_TRY(watch(setup.server_socket));
  HandoffClient client = UFFDA_TRY(HandoffClient::connect(setup.server_socket));
  for (ResolvedMap& map : setup.maps) {
    const auto found = client.open(map.name);
    if (!found) return std::unexpected(found.error().within(map.path));
    map.changes = found->writable;
    map.size = found->size.value;
    if (map.changes && map.mode != MapMode::growable) map.size = UFFDA_TRY(client.length(map.name)).value;
    if (!map.is_written_to() || map.changes) continue;
    return fail(Errc::permission_denied,
                fmt::format("{}: export '{}' of the server at {} can only be read: serve it as {}=URI,rw", map.path,
                            map.name, setup.server_socket, map.name));
  }
  return std::unique_ptr<Service>(new Service(std::move(setup), std::move(process), std::move(watcher)));
}

fuse::FileOptions Service::file_options(std::size_t index, uid_t owner, gid_t group) const {
  const ResolvedMap& map = setup_.maps[index];
  fuse::FileOptions options;
  options.size = {map.size};
  options.owner = owner;
  options.group = group;
  options.make_reader = [socket = socket(), name = map.name]() -> Result<fuse::ReadAt> {
    auto client = std::make_shared<HandoffClient>(UFFDA_TRY(HandoffClient::connect(socket)));
    return fuse::ReadAt(
        [client, name](ByteOffset offset, std::span<std::byte> buffer) { return client->read(name, offset, buffer); });
  };
  options.mode = map.is_written_to()        ? fuse::FileMode::writable
                 : map.mode == MapMode::cow ? fuse::FileMode::cow
                                            : fuse::FileMode::read_only;
  options.changes = map.changes;
  options.grows = map.mode == MapMode::growable;
  options.make_writer = [socket = socket(), name = map.name, size = map.size]() -> Result<fuse::FileWriter> {
    auto client = std::make_shared<HandoffClient>(UFFDA_TRY(HandoffClient::connect(socket)));
    client->close();  // until it is needed: a server takes so many connections
    return fuse::FileWriter{
        .write_at = [client, name](ByteOffset offset,
                                   std::span<const std::byte> bytes) { return client->write(name, offset, bytes); },
        .sync = [client, name,
                 size](std::uint64_t& seen) { return client->sync(name, {.start = {0}, .length = {size}}, seen); },
        .resize =
            [client, name](fuse::FileWriter::Resize how, ByteCount length) {
              using Resize = fuse::FileWriter::Resize;
              if (how == Resize::ask) return client->length(name);
              return client->resize(name, length,
                                    how == Resize::grow ? HandoffClient::Resize::grow : HandoffClient::Resize::exactly);
            },
        .failures_told = [client, name] { return client->failures_told(name); }};
  };
  return options;
}

void Service::store_all() {
  if (watch_.socket() < 0) return;
  for (const ResolvedMap& map : setup_.maps) {
    if (!map.is_written_to()) continue;
    auto client = HandoffClient::connect(socket());
    std::uint64_t seen = 0;
    Result<void> stored = client ? Result<void>{} : std::unexpected(client.error());
    // What is left after a deadline may be more than the source takes in that time.
    for (int tries = 0; client && tries < kStoreTries; ++tries) {
      stored = client->sync(map.name, {.start = {0}, .length = {map.size}}, seen);
      if (stored) break;
    }
    if (!stored) say("{}: not all that was written is stored: {}", map.path, stored.error().message());
  }
}

void Service::forward_messages() {
  if (process_) process_->forward_messages();
}

bool Service::print(const handoff::Notice& notice) {
  const auto name = handoff::get_name(notice.name);
  const auto map = std::ranges::find_if(setup_.maps, [&](const ResolvedMap& one) { return name && one.name == *name; });
  if (map == setup_.maps.end()) return false;  // somebody else's, on a shared server
  if (printed_.size() < kMaxPrinted && printed_.emplace(*name, notice.offset, notice.length).second) {
    say("{}: [{}, +{}): {}", map->path, notice.offset, notice.length, handoff::get_text(notice.text));
  }
  return true;
}

void Service::print_end() {
  constexpr const char* kMeaning =
      "what was not read yet can no longer be had: reads give EIO, memory raises SIGBUS, "
      "and nothing that is written is stored";
  if (!process_) {
    say("the server at {} ended: {}", socket(), kMeaning);
    return;
  }
  const auto status = process_->wait(Deadline::after(kEndWait));
  say("the server (pid {}) {}: {}", process_->pid(), status ? describe_wait_status(*status) : "closed its connections",
      kMeaning);
}

Service::News Service::hear() {
  const auto notice = watch_.next_notice(Deadline::at(Clock::now()));
  if (notice) return print(*notice) ? News::notice : News::none;
  if (notice.error().code() == Errc::timed_out) return News::none;
  // One that has a holder is back at once; what happened meanwhile is not told again.
  if (auto again = watch(socket())) {
    watch_ = std::move(*again);
    return News::none;
  }
  print_end();
  return News::server_gone;
}

std::optional<std::string> Service::stats() {
  if (watch_.socket() < 0) return std::nullopt;
  auto client = HandoffClient::connect(socket());
  if (!client) return std::nullopt;
  auto text = client->stats();
  if (!text) return std::nullopt;
  return *text;
}

void Service::close() {
  watch_.close();
  if (process_) (void)process_->wait(Deadline::after(kEndWait));
  process_.reset();
}

}  // namespace uffda::exec
