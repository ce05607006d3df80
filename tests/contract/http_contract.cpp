// The source contract over nginx: HTTP/1.1 in the clear, HTTP/1.1 and HTTP/2 through TLS.
#include <filesystem>

#include "contract/source_contract.h"
#include "support/nginx.h"

namespace uffda::test {
namespace {

class NginxServer final : public SourceServer {
 public:
  static Result<std::unique_ptr<SourceServer>> start(const PatternFile& file, Nginx::Speaks speaks) {
    const std::filesystem::path path(file.path());
    auto nginx =
        UFFDA_TRY(Nginx::start({.directory = path.parent_path(), .root = path.parent_path(), .speaks = speaks}));
    return std::make_unique<NginxServer>(std::move(nginx));
  }
  explicit NginxServer(std::unique_ptr<Nginx> nginx) : nginx_(std::move(nginx)) {}
  [[nodiscard]] std::string uri() const override { return nginx_->url() + "/data?" + nginx_->parameters(); }

 private:
  std::unique_ptr<Nginx> nginx_;
};

auto over(Nginx::Speaks speaks) {
  return [speaks](const PatternFile& file) { return NginxServer::start(file, speaks); };
}

const std::vector<SourceCase> kHttpCases{
    {.name = "http", .uri = "#", .serve = over(Nginx::Speaks::http1)},
    {.name = "http_one_connection", .uri = "#connections=1", .serve = over(Nginx::Speaks::http1)},
    {.name = "https_http1", .uri = "#", .serve = over(Nginx::Speaks::https1)},
    {.name = "https_http2", .uri = "#", .serve = over(Nginx::Speaks::https2)},
    {.name = "error_http", .uri = "error+#rate=0", .serve = over(Nginx::Speaks::http1)},
    {.name = "delay_https", .uri = "delay+#&delay=20us", .serve = over(Nginx::Speaks::https2)},
};

INSTANTIATE_TEST_SUITE_P(Http, SourceContract, testing::ValuesIn(kHttpCases),
                         [](const testing::TestParamInfo<SourceCase>& info) { return info.param.name; });

}  // namespace
}  // namespace uffda::test
