// What QEMU's monitor says, and who says that he is one.
#include "qemu/qmp.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <nlohmann/json.hpp>
#include <thread>

#include "exec/paths.h"
#include "qemu/channel.h"

namespace uffda::qemu {
namespace {

using testing::HasSubstr;
using testing::Pair;
using testing::UnorderedElementsAre;

TEST(QmpAnswers, AreLines) {
  std::string input = "{\"return\": {}}\r\n{\"event\": \"STOP\"}\n{\"ret";
  EXPECT_TRUE(take_object(input)->value().contains("return"));
  EXPECT_TRUE(take_object(input)->value().contains("event"));
  EXPECT_FALSE(take_object(input)->has_value());
  EXPECT_EQ(input, "{\"ret");
  for (const char* wrong : {"[]\n", "7\n", "\n", "SSH-2.0\n", "{\n"}) {
    input = wrong;
    EXPECT_EQ(take_object(input).error().code(), Errc::protocol) << wrong;
  }
  input.assign((std::size_t{16} << 20U) + 1, ' ');
  EXPECT_EQ(take_object(input).error().code(), Errc::protocol) << "it has no end";
}

TEST(QmpAnswers, ReturnRefuseOrTellOfSomethingElse) {
  EXPECT_EQ(returned_by({{"return", 7}}, "x")->value(), 7);
  EXPECT_FALSE(returned_by({{"event", "STOP"}}, "x")->has_value());
  const auto refused = returned_by({{"error", {{"desc", "no such thing"}}}}, "stop");
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().message(), HasSubstr("QEMU refuses stop: no such thing"));
  EXPECT_FALSE(returned_by({{"error", "of another kind"}}, "stop"));
}

TEST(QmpAnswers, MayBeOfAnyDepth) {
  constexpr std::size_t kDepth = 1'000'000;
  std::string input = "{\"return\": " + std::string(kDepth, '[') + std::string(kDepth, ']') + "}\n";
  auto answer = take_object(input);
  ASSERT_TRUE(answer && *answer);
  EXPECT_TRUE(returned_by(std::move(**answer), "x")->value().is_array());
}

TEST(QmpAnswers, HaveFieldsOfAnyKindOrNone) {
  const nlohmann::json answer = {{"text", "a"}, {"number", 7U}, {"truth", true}};
  EXPECT_EQ(text_of(answer, "text"), "a");
  EXPECT_EQ(number_of(answer, "number"), 7U);
  EXPECT_TRUE(truth_of(answer, "truth"));
  for (const nlohmann::json& other :
       {nlohmann::json(7), nlohmann::json::array(), nlohmann::json{{"field", {{"a", 1}}}}}) {
    EXPECT_EQ(text_of(other, "field"), "");
    EXPECT_EQ(number_of(other, "field"), 0U);
    EXPECT_FALSE(truth_of(other, "field"));
  }
}

TEST(QemuPageSizes, AreThoseOfPages) {
  EXPECT_THAT(parse_page_sizes("  Block Name    PSize   Offset\r\n"
                               "      pc.ram    4 KiB  0x0000000000000000\r\n"
                               "          m0    2 MiB  0x0\r\n    m1    1 GiB  0x0\r\n"
                               "  none    0 KiB  0x0\r\n  odd    12 KiB  0x0\r\n  small    1 KiB  0x0\r\n"
                               "  large    16777217 GiB  0x0\r\n"),
              UnorderedElementsAre(Pair("pc.ram", 4_KiB), Pair("m0", 2_MiB), Pair("m1", 1_GiB)));
}

/// A monitor that says all of `text` to its client at once.
class Monitor {
 public:
  explicit Monitor(std::string text) : text_(std::move(text)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path_.copy(address.sun_path, path_.size());
    EXPECT_EQ(::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(::listen(listener_.get(), 1), 0);
    thread_ = std::thread([this] { talk(); });
  }
  Monitor(const Monitor&) = delete;
  Monitor& operator=(const Monitor&) = delete;
  ~Monitor() { thread_.join(); }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  void talk() const {
    const os::UniqueFd client(::accept(listener_.get(), nullptr, nullptr));
    EXPECT_EQ(::send(client.get(), text_.data(), text_.size(), MSG_NOSIGNAL), static_cast<ssize_t>(text_.size()));
    std::array<char, 256> heard{};
    while (::recv(client.get(), heard.data(), heard.size(), 0) > 0) {
    }
  }

  const std::string text_;
  exec::PrivateDirectory directory_ = exec::PrivateDirectory::create().value();
  std::string path_ = directory_.file("qmp");
  os::UniqueFd listener_{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  std::thread thread_;
};

constexpr const char* kGreets = "{\"QMP\": {}}\n{\"return\": {}, \"id\": \"uffda-0-0\"}\n";
constexpr const char* kAnswersLate = "{\"event\": \"RESUME\"}\n{\"return\": 7, \"id\": \"uffda-0-1\"}\n";

TEST(Qmp, DropsEvents) {
  const Monitor monitor(std::string(kGreets) + kAnswersLate);
  auto qmp = Qmp::connect(monitor.path());
  ASSERT_TRUE(qmp) << qmp.error().message();
  EXPECT_EQ(qmp->execute("query-status").value(), 7);
}

TEST(Qmp, DropsWhatIsForAnother) {
  const Monitor monitor(std::string(kGreets) + "{\"return\": 8, \"id\": \"uffda-1-1\"}\n" + kAnswersLate);
  auto qmp = Qmp::connect(monitor.path());
  ASSERT_TRUE(qmp) << qmp.error().message();
  EXPECT_EQ(qmp->execute("query-status").value(), 7);
}

TEST(Qmp, ListensToEventsNoLongerThanToNothing) {
  const Monitor monitor(std::string(kGreets) + kAnswersLate);
  auto qmp = Qmp::connect(monitor.path());
  ASSERT_TRUE(qmp) << qmp.error().message();
  const auto answer = qmp->execute("query-status", {}, Deadline::after(Duration::zero()));
  ASSERT_FALSE(answer) << "what comes behind an event is for another time";
  EXPECT_EQ(answer.error().code(), Errc::timed_out);
}

}  // namespace
}  // namespace uffda::qemu
