#include "support/nginx.h"

#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <sstream>

namespace uffda::test {
namespace {

Deadline patience() { return Deadline::after(std::chrono::seconds(30)); }

std::string certificate(const std::string& directory) { return directory + "/certificate.pem"; }

Result<void> make_certificate(const std::string& directory) {
  if (std::filesystem::exists(certificate(directory))) return {};
  auto openssl =
      ChildProcess::start({"openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
                           "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
                           "-keyout", directory + "/key.pem", "-out", certificate(directory)},
                          directory + "/openssl.log");
  if (!openssl) return fail(Errc::unsupported, openssl.error().context());
  const int status = UFFDA_TRY(openssl->wait(patience()));
  if (status != 0) return fail(Errc::unsupported, "openssl made no certificate");
  return {};
}

std::string listen_lines(const Nginx::Options& options, int port) {
  if (options.speaks == Nginx::Speaks::http1) return fmt::format("listen 127.0.0.1:{};", port);
  return fmt::format("listen 127.0.0.1:{} ssl{}; ssl_certificate {}; ssl_certificate_key {}/key.pem;", port,
                     options.speaks == Nginx::Speaks::https2 ? " http2" : "", certificate(options.directory),
                     options.directory);
}

void write_configuration(const Nginx::Options& options, int port) {
  std::ofstream(options.directory + "/nginx.conf") << fmt::format(
      R"(daemon off; master_process off; worker_processes 1; pid {0}/pid; error_log {0}/error.log;
events {{ worker_connections 512; }}
http {{
  log_format line '$server_protocol $connection $status $http_range';
  access_log {0}/access.log line;
  client_body_temp_path {0}/body; proxy_temp_path {0}/proxy; fastcgi_temp_path {0}/fastcgi;
  uwsgi_temp_path {0}/uwsgi; scgi_temp_path {0}/scgi;
  keepalive_requests 100000;
  server {{ {1} root {2}; {3} }}
}}
)",
      options.directory, listen_lines(options, port), options.root, options.more);
}

Result<ChildProcess> run(const Nginx::Options& options, int port) {
  auto process = ChildProcess::start({"nginx", "-p", options.directory, "-e", options.directory + "/error.log", "-c",
                                      options.directory + "/nginx.conf"},
                                     options.directory + "/nginx.log");
  if (!process) return fail(Errc::unsupported, process.error().context());
  UFFDA_TRY_VOID(wait_for_port(port, patience()));
  return process;
}

}  // namespace

Result<std::unique_ptr<Nginx>> Nginx::start(Options options) {
  if (options.speaks != Speaks::http1) UFFDA_TRY_VOID(make_certificate(options.directory));
  const int port = free_port();
  write_configuration(options, port);
  ChildProcess process = UFFDA_TRY(run(options, port));
  return std::unique_ptr<Nginx>(new Nginx(std::move(options), port, std::move(process)));
}

Result<void> Nginx::restart() {
  process_ = UFFDA_TRY(run(options_, port_));
  return {};
}

std::string Nginx::url() const {
  return fmt::format("{}://127.0.0.1:{}", options_.speaks == Speaks::http1 ? "http" : "https", port_);
}

std::string Nginx::parameters() const {
  return options_.speaks == Speaks::http1 ? "" : "cafile=" + certificate(options_.directory);
}

std::string Nginx::log() const {
  std::ostringstream text;
  text << std::ifstream(options_.directory + "/access.log").rdbuf();
  return text.str();
}

}  // namespace uffda::test
