// What `uffda exec` and `uffda mount` share: a server (a running one, or one of our own), its exports, and FUSE files
// that read from it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "exec/resolved_map.h"
#include "exec/server_process.h"
#include "fuse/file_host.h"
#include "server/client.h"

namespace uffda::exec {

struct ServiceSetup {
  std::vector<ResolvedMap> maps;
  std::string server_socket;  // of a running server; empty: start one that listens at `own_socket`
  std::string own_socket;
  std::vector<std::string> server_arguments;
};

/// Threads: one, except reader().
class Service {
 public:
  /// Starts or finds the server, watches it, and looks up the exports (sizes are in maps() then).
  /// If a server of our own refused to start, its reason has been printed and its status is in `exit_status`.
  static Result<std::unique_ptr<Service>> open(ServiceSetup setup, std::optional<int>& exit_status);

  [[nodiscard]] const std::vector<ResolvedMap>& maps() const { return setup_.maps; }
  [[nodiscard]] const std::string& socket() const { return setup_.server_socket; }

  /// How to serve map number `index` over FUSE: the reads go to the server, each thread with a connection of its own.
  [[nodiscard]] fuse::FileOptions file_options(std::size_t index, uid_t owner, gid_t group) const;

  /// To poll: notices of the server, or its end; -1 after its end.
  [[nodiscard]] int watch_descriptor() const { return watch_.socket(); }
  /// To poll: what a server of our own printed; -1: nothing more.
  [[nodiscard]] int message_descriptor() const { return process_ ? process_->messages() : -1; }
  void forward_messages();

  enum class News { none, notice, server_gone };
  /// Reads one notice and prints it, each range once; prints how the server ended. Call it when watch_descriptor() is
  /// readable.
  News hear();

  /// The server's counts, as JSON; nothing if it is gone.
  std::optional<std::string> stats();
  /// What was written through writable maps is stored by their sources; if it cannot be, says so.
  void store_all();
  /// Ends the watch, upon which a server of our own ends when it has nothing left to do, and waits for that.
  void close();

 private:
  Service(ServiceSetup setup, std::optional<ServerProcess> process, HandoffClient watch)
      : setup_(std::move(setup)), process_(std::move(process)), watch_(std::move(watch)) {}
  /// False if it is about none of our maps.
  bool print(const handoff::Notice& notice);
  void print_end();

  ServiceSetup setup_;
  std::optional<ServerProcess> process_;
  HandoffClient watch_;
  std::set<std::tuple<std::string, std::uint64_t, std::uint64_t>> printed_;
};

}  // namespace uffda::exec
