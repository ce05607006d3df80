// http:, https: and s3: live in the plugin uffda-http.so (src/plugins/http); here is what they are called.
#include "sources/builtin.h"
#include "sources/plugin.h"

namespace uffda::sources {
namespace {

std::vector<SourceParameterHelp> with_common(std::vector<SourceParameterHelp> parameters) {
  const std::vector<SourceParameterHelp> common = {
      {"connections", "requests in flight, and connections where the server has no HTTP/2 (1 to 256, default 64)"},
      {"connect-timeout", "how long to wait for a connection (default 5s)"},
      {"stall", "a request of which nothing came for so long is made anew (default 8s)"},
      {"cafile", "certificates to trust, PEM (default: SSL_CERT_FILE, else the system's)"},
      {"unpinned", "on: serve an object that has neither ETag nor date, whose change cannot be noticed (default off)"}};
  parameters.insert(parameters.end(), common.begin(), common.end());
  return parameters;
}

SourceScheme web_scheme(const std::string& name, const std::string& help) {
  return {.name = name,
          .syntax = name + "://HOST/PATH",
          .help = help,
          .parameters = with_common({{"token-file", "a file with a bearer token (default: ~/.netrc, if it has HOST)"}}),
          .open = open_in_plugin("http")};
}

}  // namespace

SourceScheme http_scheme() {
  return web_scheme("http", "an object of a web server, by range requests; a '?' of its own URL is written %3F");
}

SourceScheme https_scheme() { return web_scheme("https", "the same through TLS"); }

SourceScheme s3_scheme() {
  return {.name = "s3",
          .syntax = "s3://BUCKET/KEY",
          .help = "an object of S3 or a store that speaks its protocol",
          .parameters = with_common({{"endpoint", "URL of the store (default: AWS_ENDPOINT_URL, else Amazon's)"},
                                     {"region", "the bucket's (default: AWS_REGION, ~/.aws/config, else us-east-1)"},
                                     {"profile", "of ~/.aws/credentials (default: AWS_PROFILE, else default)"},
                                     {"anonymous", "on: a public object, without credentials (default off)"}}),
          .open = open_in_plugin("http")};
}

}  // namespace uffda::sources
