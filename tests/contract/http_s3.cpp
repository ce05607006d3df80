// s3: and radosgw, a real server of that protocol; and one that answers as Amazon does and radosgw does not.
#include <fmt/format.h>

#include <filesystem>
#include <fstream>

#include "contract/http_support.h"
#include "support/radosgw.h"

namespace uffda::test {
namespace {

/// The keys of radosgw's user in the environment.
struct Keys {
  Variable id{"AWS_ACCESS_KEY_ID", Radosgw::kKey};
  Variable secret{"AWS_SECRET_ACCESS_KEY", Radosgw::kSecret};
};

class StoredFile final : public SourceServer {
 public:
  static Result<std::unique_ptr<SourceServer>> start(const PatternFile& file) {
    const Radosgw* const store = UFFDA_TRY(Radosgw::shared());
    UFFDA_TRY_VOID(store->put(file.path(), "contract"));
    static const Keys keys;  // a test may have two of these, one after the other
    return std::make_unique<StoredFile>(store->endpoint());
  }
  explicit StoredFile(std::string endpoint) : endpoint_(std::move(endpoint)) {}
  [[nodiscard]] std::string uri() const override { return "s3://bucket/contract?endpoint=" + endpoint_; }

 private:
  std::string endpoint_;
};

const std::vector<SourceCase> kStoreCases{{.name = "s3", .uri = "#", .serve = StoredFile::start},
                                          {.name = "error_s3", .uri = "error+#&rate=0", .serve = StoredFile::start}};

INSTANTIATE_TEST_SUITE_P(Store, SourceContract, testing::ValuesIn(kStoreCases),
                         [](const testing::TestParamInfo<SourceCase>& info) { return info.param.name; });

class StoreTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto store = Radosgw::shared();
    if (!store) GTEST_SKIP() << store.error().message();
    store_ = *store;
    endpoint_.emplace("AWS_ENDPOINT_URL", store_->endpoint());
  }
  PatternFile file_{kSourceBytes};
  const Radosgw* store_ = nullptr;
  std::optional<Variable> endpoint_;
};

TEST_F(StoreTest, signs_names_of_every_kind) {
  const Keys keys;
  // As it is written behind s3://bucket/, and escaped as in a URL.
  const std::pair<std::string, std::string> names[] = {{"plain", "plain"},
                                                       {"plus+equals=colon:", "plus%2Bequals%3Dcolon%3A"},
                                                       {"with blank", "with%20blank"},
                                                       {"per%25cent%3Fquestion#", "per%25cent%3Fquestion%23"},
                                                       {"\xC3\xA4\xE2\x82\xAC", "%C3%A4%E2%82%AC"}};
  for (const auto& [name, escaped] : names) {
    ASSERT_TRUE(store_->put(file_.path(), escaped).has_value()) << name;
    expect_right(*opened("s3://bucket/" + name), 65536);
  }
}

TEST_F(StoreTest, says_what_a_store_refuses) {
  ASSERT_TRUE(store_->put(file_.path(), "refused").has_value());
  {
    const Variable id("AWS_ACCESS_KEY_ID", Radosgw::kKey);
    const Variable secret("AWS_SECRET_ACCESS_KEY", "wrong");
    expect_refused("s3://bucket/refused", Errc::permission_denied, "SignatureDoesNotMatch");
  }
  {
    const Variable id("AWS_ACCESS_KEY_ID", "nobody");
    const Variable secret("AWS_SECRET_ACCESS_KEY", "wrong");
    expect_refused("s3://bucket/refused", Errc::permission_denied, "InvalidAccessKeyId");
  }
  expect_refused("s3://bucket/refused?anonymous=on", Errc::permission_denied, "403");
  const Keys keys;
  expect_refused("s3://bucket/none", Errc::not_found, "NoSuchKey");
  expect_refused("s3://nobucket/none", Errc::not_found, "NoSuchBucket");
  std::ofstream(file_.beside("empty")).close();
  ASSERT_TRUE(store_->put(file_.beside("empty"), "empty").has_value());
  expect_refused("s3://bucket/empty", Errc::invalid_argument, "is empty");
}

TEST_F(StoreTest, an_object_that_is_stored_anew_is_an_error) {
  const Keys keys;
  ASSERT_TRUE(store_->put(file_.path(), "changing").has_value());
  const auto source = opened("s3://bucket/changing");
  expect_right(*source, 0);
  file_.resize(kSourceBytes / 2);
  ASSERT_TRUE(store_->put(file_.path(), "changing").has_value());
  expect_failed(*source, Errc::io, "has changed since it was opened");
}

TEST_F(StoreTest, finds_its_keys_in_a_profile) {
  ASSERT_TRUE(store_->put(file_.path(), "profile").has_value());
  std::filesystem::create_directory(file_.beside(".aws"));
  std::ofstream(file_.beside(".aws/credentials"))
      << fmt::format("[default]\naws_access_key_id = x\n\n[work]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
                     Radosgw::kKey, Radosgw::kSecret);
  const Variable no_id("AWS_ACCESS_KEY_ID", "");
  const Variable no_secret("AWS_SECRET_ACCESS_KEY", "");
  const Variable home("HOME", std::filesystem::path(file_.path()).parent_path());
  expect_refused("s3://bucket/profile", Errc::permission_denied, "profile [default]");
  expect_right(*opened("s3://bucket/profile?profile=work"), 0);
  const Variable profile("AWS_PROFILE", "work");
  expect_right(*opened("s3://bucket/profile"), 0);
}

TEST(StoreRequest, is_signed_for_the_region_and_carries_the_session) {
  const Keys keys;
  const Variable session("AWS_SESSION_TOKEN", "session");
  const FakeHttp server(
      [](const FakeHttp::Request& request, const FakeHttp::Peer& peer) { return peer.send(FakeHttp::right(request)); });
  const auto source = opened("s3://bucket/key?region=eu-north-1&endpoint=" + server.url());
  const FakeHttp::Request request = server.requests().back();
  EXPECT_EQ(request.line, "GET /bucket/key HTTP/1.1");
  EXPECT_EQ(request.header("x-amz-security-token"), "session");
  const std::string signature = request.header("authorization");
  EXPECT_NE(signature.find("/eu-north-1/s3/aws4_request"), std::string::npos) << signature;
  EXPECT_NE(signature.find("x-amz-security-token"), std::string::npos) << signature;
  EXPECT_EQ(source->name(), "s3://bucket/key");
}

TEST(StoreRequest, to_another_region_is_told_which) {
  const Keys keys;
  const FakeHttp server([](const FakeHttp::Request&, const FakeHttp::Peer& peer) {
    return peer.send(FakeHttp::status("301 Moved Permanently", "x-amz-bucket-region: eu-west-3\r\n"));
  });
  expect_refused("s3://bucket/key?endpoint=" + server.url(), Errc::invalid_argument, "region=eu-west-3");
  EXPECT_EQ(server.requests().size(), 1U);
}

TEST(StoreUri, is_a_bucket_and_a_key) {
  for (const std::string uri : {"s3:bucket/key", "s3://bucket", "s3://bucket/", "s3:///key", "s3://b%20d/key"}) {
    expect_refused(uri, Errc::invalid_argument, "expected s3://");
  }
  expect_refused("s3://b/k?endpoint=localhost", Errc::invalid_argument, "https://HOST");
  expect_refused("s3://b/k?region=a/b", Errc::invalid_argument, "not a region");
}

}  // namespace
}  // namespace uffda::test
