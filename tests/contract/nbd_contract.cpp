// NBD sources in the source contract, on a real nbdkit.
#include <algorithm>
#include <fstream>

#include "contract/source_contract.h"
#include "support/nbd_server.h"

namespace uffda::test {
namespace {

constexpr const char* kPsk = "alice:6bc2a1f4c9d2b6f0a1b2c3d4e5f60718";

class NbdkitServer final : public SourceServer {
 public:
  NbdkitServer(Nbdkit server, std::string uri) : server_(std::move(server)), uri_(std::move(uri)) {}
  [[nodiscard]] std::string uri() const override { return uri_; }

 private:
  Nbdkit server_;
  std::string uri_;
};

Result<std::unique_ptr<SourceServer>> serve(const PatternFile& file, std::vector<std::string> arguments,
                                            const std::string& scheme, const std::string& parameters) {
  const auto parameter = std::ranges::find_if(arguments, [](const std::string& one) { return !one.starts_with("--"); });
  arguments.insert(parameter, {"file", file.path()});
  auto server = Nbdkit::start(file.beside("socket"), std::move(arguments));
  if (!server) return std::unexpected(server.error());
  std::string uri = scheme + "?socket=" + server->socket() + parameters;
  return std::make_unique<NbdkitServer>(std::move(*server), std::move(uri));
}

Result<std::unique_ptr<SourceServer>> on_socket(const PatternFile& file) { return serve(file, {}, "nbd+unix:///", ""); }

Result<std::unique_ptr<SourceServer>> for_one_client(const PatternFile& file) {
  return serve(file, {"--filter=multi-conn", "multi-conn-mode=disable"}, "nbd+unix:///", "");
}

Result<std::unique_ptr<SourceServer>> with_keys(const PatternFile& file) {
  const std::string keys = file.beside("keys.psk");
  std::ofstream(keys) << kPsk << '\n';
  return serve(file, {"--tls=require", "--tls-psk=" + keys}, "nbds+unix://alice@/", "&tls-psk-file=" + keys);
}

/// On a port of loopback. Somebody else may have taken it since: then the next one.
class PortServer final : public SourceServer {
 public:
  static Result<std::unique_ptr<SourceServer>> serve(const PatternFile& file) {
    for (int attempt = 0; attempt < 5; ++attempt) {
      const int port = free_port();
      auto process = ChildProcess::start({"nbdkit", "--foreground", "--readonly", "--ipaddr", "127.0.0.1", "--port",
                                          std::to_string(port), "file", file.path()});
      if (!process) return fail(Errc::unsupported, process.error().context());
      if (wait_for_port(port, Deadline::after(std::chrono::seconds(10))))
        return std::make_unique<PortServer>(std::move(*process), port);
    }
    return fail(Errc::io, "nbdkit does not listen");
  }
  PortServer(ChildProcess process, int port) : process_(std::move(process)), port_(port) {}
  [[nodiscard]] std::string uri() const override { return "nbd://localhost:" + std::to_string(port_) + "/"; }

 private:
  ChildProcess process_;
  int port_;
};

const std::vector<SourceCase> kNbdCases{
    {.name = "nbd_unix", .uri = "#", .serve = on_socket},
    {.name = "nbd_unix_without_zero_runs", .uri = "#&zero-runs=off", .serve = on_socket},
    {.name = "nbd_one_connection", .uri = "#", .serve = for_one_client},
    {.name = "nbd_tcp", .uri = "#", .serve = PortServer::serve},
    {.name = "nbds_psk", .uri = "#", .serve = with_keys},
    {.name = "error_nbd", .uri = "error+#&rate=0", .serve = on_socket},
    {.name = "delay_nbd", .uri = "delay+#&delay=20us&jitter=20us", .serve = on_socket},
};

INSTANTIATE_TEST_SUITE_P(Nbd, SourceContract, testing::ValuesIn(kNbdCases),
                         [](const testing::TestParamInfo<SourceCase>& info) { return info.param.name; });

}  // namespace
}  // namespace uffda::test
