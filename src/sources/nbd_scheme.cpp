// nbd://, nbds://, nbd+unix:// and nbds+unix://. What opens them is a plugin (src/plugins/nbd).
#include "sources/builtin.h"
#include "sources/plugin.h"

namespace uffda::sources {

namespace {

std::vector<SourceParameterHelp> parameters(bool tls, bool is_unix) {
  std::vector<SourceParameterHelp> all;
  if (is_unix) all.push_back({"socket", "path of the server's UNIX socket (required)"});
  if (tls) {
    all.push_back(
        {"tls-certificates", "directory of ca-cert.pem, client-cert.pem, client-key.pem (required, or the next)"});
    all.push_back({"tls-psk-file", "file of pre-shared keys, instead of certificates"});
    all.push_back({"tls-verify-peer", "on or off: refuse a server that its certificate does not prove (default on)"});
  }
  all.push_back({"connections", "how many at once, if the server allows several (default 4)"});
  all.push_back({"zero-runs", "on or off: ask the server which ranges are zeroes (default on)"});
  all.push_back({"connect-timeout", "for one attempt to connect (default 10s)"});
  return all;
}

SourceScheme scheme(std::string name, std::string syntax, std::string help, bool tls, bool is_unix) {
  return {.name = std::move(name),
          .syntax = std::move(syntax),
          .help = std::move(help),
          .parameters = parameters(tls, is_unix),
          .open = open_in_plugin("nbd"),
          .parameters_of = nullptr,
          .create = nullptr};
}

}  // namespace

std::vector<SourceScheme> nbd_schemes() {
  return {
      scheme("nbd", "nbd://HOST[:PORT]/EXPORT", "an export of an NBD server", false, false),
      scheme("nbds", "nbds://[USER@]HOST[:PORT]/EXPORT", "an export of an NBD server, over TLS", true, false),
      scheme("nbd+unix", "nbd+unix:///EXPORT?socket=PATH", "an export of an NBD server on a UNIX socket", false, true),
      scheme("nbds+unix", "nbds+unix:///EXPORT?socket=PATH", "the same over TLS", true, true)};
}

}  // namespace uffda::sources
