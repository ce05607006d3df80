// The server as a process: how it starts and ends, what it tells, and what its death means for its clients.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <csetjmp>
#include <csignal>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "support/handoff_support.h"
#include "support/test_support.h"

namespace uffda::test {
namespace {

using testing::HasSubstr;

constexpr std::uint64_t kExportSize = 1U << 20U;
constexpr Duration kSoon = std::chrono::seconds(20);

class ServerProcess : public testing::Test {
 protected:
  void SetUp() override { write_pattern_file(directory_.path("disk"), {kExportSize}); }
  [[nodiscard]] std::string uri(const std::string& layers = "", const std::string& query = "") const {
    return layers + "file:" + directory_.path("disk") + query;
  }
  [[nodiscard]] ServeOptions options(const std::string& layers = "", const std::string& query = "") const {
    return {.exports = {{"disk", uri(layers, query)}}};
  }
  [[nodiscard]] nlohmann::json report() const {
    std::ifstream file(directory_.path("report.json"));
    return nlohmann::json::parse(file, nullptr, false);
  }

  TempDir directory_;
};

TEST_F(ServerProcess, TheSocketIsForItsUserOnlyAndGoesAtTheEnd) {
  ServeOptions wish = options();
  wish.report_path = directory_.path("report.json");
  TestServer server(directory_, wish);
  ASSERT_TRUE(server.ready());
  struct stat status{};
  ASSERT_EQ(::stat(server.socket().c_str(), &status), 0);
  EXPECT_TRUE(S_ISSOCK(status.st_mode));
  EXPECT_EQ(status.st_mode & 0777U, 0600U);
  std::array<std::byte, 5000> buffer{};
  auto client = HandoffClient::connect(server.socket());
  ASSERT_TRUE(client && client->read("disk", {77}, buffer));
  EXPECT_FALSE(Pattern::mismatch(buffer, 77));
  server.terminate();
  EXPECT_EQ(server.wait(), 0);
  EXPECT_NE(::stat(server.socket().c_str(), &status), 0);
  const auto written = report();
  EXPECT_GE(written["fetches"]["bytes"].get<std::uint64_t>(), 5000U);
  EXPECT_EQ(written["exports"][0]["name"], "disk");
  EXPECT_EQ(written["exports"][0]["size"], kExportSize);
  EXPECT_TRUE(written["latency_us"]["fetch"].contains("p99"));
  // Whoever connects now learns that nobody is there.
  EXPECT_EQ(client->stats().error().code(), Errc::gone);
}

TEST_F(ServerProcess, ADeadServersSocketIsReplacedALiveOnesIsNot) {
  TestServer first(directory_, options());
  ASSERT_TRUE(first.ready());
  TestServer second(directory_, options());
  EXPECT_FALSE(second.ready());
  EXPECT_EQ(second.wait(), 1);
  EXPECT_GE(stat_of(first.socket(), "/exports/0/size"), 0);  // and the first one has not lost its path
  first.kill();
  EXPECT_EQ(first.wait(), 128 + SIGKILL);
  const TestServer third(directory_, options());
  EXPECT_TRUE(third.ready());
  EXPECT_GE(stat_of(third.socket(), "/exports/0/size"), 0);
}

TEST_F(ServerProcess, AFileAtTheSocketsPathIsNotTouched) {
  ServeOptions wish = options();
  wish.socket_path = directory_.path("disk");
  TestServer server(directory_, wish);
  EXPECT_FALSE(server.ready());
  EXPECT_EQ(server.wait(), 2);
  struct stat status{};
  ASSERT_EQ(::stat(directory_.path("disk").c_str(), &status), 0);
  EXPECT_EQ(status.st_size, static_cast<off_t>(kExportSize));
}

TEST_F(ServerProcess, WrongOptionsAreRefusedWithTheReason) {
  const auto refused = [&](const ServeOptions& wish) {
    ServeOptions with_socket = wish;
    with_socket.socket_path = directory_.path("other.sock");
    const auto status = run_serve(with_socket);
    if (status) return std::string("served");
    EXPECT_TRUE(status.error().code() == Errc::invalid_argument || status.error().code() == Errc::not_found)
        << status.error().message();
    return status.error().context();
  };
  EXPECT_THAT(refused({}), HasSubstr("export"));
  EXPECT_THAT(refused({.exports = {{"a", uri()}, {"a", uri()}}}), HasSubstr("two exports"));
  EXPECT_THAT(refused({.exports = {{"", uri()}}}), HasSubstr("name"));
  EXPECT_THAT(refused({.exports = {{std::string(200, 'x'), uri()}}}), HasSubstr("name"));
  EXPECT_THAT(refused({.exports = {{"a", "nonsense:x"}}}), HasSubstr("nonsense"));
  EXPECT_THAT(refused({.exports = {{"a", uri()}}, .max_clients = 0}), HasSubstr("limit"));
  EXPECT_THAT(refused({.exports = {{"a", uri()}}, .max_mappings = 1U << 20U}), HasSubstr("mappings"));
}

TEST_F(ServerProcess, UntilIdleEndsWhenTheLastWatcherAndClientAreGone) {
  ServeOptions wish = options();
  wish.until_idle = true;
  TestServer server(directory_, wish);
  ASSERT_TRUE(server.ready());
  EXPECT_GE(stat_of(server.socket(), "/exports/0/size"), 0);  // a client that comes and goes does not end it
  {
    auto watcher = HandoffClient::connect(server.socket());
    ASSERT_TRUE(watcher && watcher->watch());
    EXPECT_EQ(stat_of(server.socket(), "/clients/watchers"), 1);
  }
  EXPECT_EQ(server.wait(), 0);
}

TEST_F(ServerProcess, ARangeThatCannotBeHadIsSigbusThereAndANoticeToWhoWatches) {
  if (!userfaultfd_works()) GTEST_SKIP() << "userfaultfd is not permitted here: needs CAP_SYS_PTRACE";
  const TestServer server(directory_, options("error+", "?range=40960-45056"));
  ASSERT_TRUE(server.ready());
  auto watcher = HandoffClient::connect(server.socket());
  ASSERT_TRUE(watcher && watcher->watch());
  const auto client = [&](bool touch) {
    return ForkedProcess([&, touch] {
             auto attached = attach_to(server.socket(), usual_features());
             UFFDA_CLIENT_CHECK(attached);
             auto memory = map_export(*attached, "disk");
             UFFDA_CLIENT_CHECK(memory);
             const auto bytes = std::span<const std::byte>(memory->bytes());
             UFFDA_CLIENT_CHECK(!Pattern::mismatch(bytes.first(40960), 0));
             UFFDA_CLIENT_CHECK(!Pattern::mismatch(bytes.subspan(45056), 45056));
             if (touch) [[maybe_unused]]
               const volatile std::byte failed = bytes[40960 + 4095];
             return 0;
           })
        .wait();
  };
  EXPECT_EQ(client(false), 0);
  EXPECT_EQ(client(true), 128 + SIGBUS);
  const auto notice = watcher->next_notice(Deadline::after(kSoon));
  ASSERT_TRUE(notice) << notice.error().message();
  EXPECT_STREQ(notice->name, "disk");
  EXPECT_EQ(notice->offset, 40960U);
  EXPECT_EQ(notice->length, 4096U);
  EXPECT_NE(notice->text[0], '\0');
  std::array<std::byte, 10> buffer{};
  auto reader = HandoffClient::connect(server.socket());
  ASSERT_TRUE(reader);
  const auto read = reader->read("disk", {41000}, buffer);
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().code(), Errc::io) << read.error().message();
}

TEST_F(ServerProcess, ASourceThatNeverAnswersIsSigbusAtTheDeadline) {
  if (!userfaultfd_works()) GTEST_SKIP() << "userfaultfd is not permitted here: needs CAP_SYS_PTRACE";
  ServeOptions wish = options("error+", "?mode=never");
  wish.warn_after = std::chrono::milliseconds(100);
  wish.deadline = std::chrono::milliseconds(300);
  TestServer server(directory_, wish);
  ASSERT_TRUE(server.ready());
  ForkedProcess client([&] {
    auto attached = attach_to(server.socket(), usual_features());
    UFFDA_CLIENT_CHECK(attached);
    auto memory = map_export(*attached, "disk");
    UFFDA_CLIENT_CHECK(memory);
    [[maybe_unused]] const volatile std::byte absent = memory->bytes()[0];
    return 0;
  });
  EXPECT_EQ(client.wait(), 128 + SIGBUS);
  server.terminate();
  EXPECT_EQ(server.wait(), 0);
}

TEST_F(ServerProcess, ItEndsAlthoughAReadWaitsForItsSource) {
  ServeOptions wish = options("error+", "?mode=never");
  TestServer server(directory_, wish);
  ASSERT_TRUE(server.ready());
  ForkedProcess reader([&] {
    auto client = HandoffClient::connect(server.socket());
    UFFDA_CLIENT_CHECK(client);
    std::array<std::byte, 10> buffer{};
    return client->read("disk", {}, buffer) ? 1 : 0;
  });
  EXPECT_TRUE(eventually([&] { return stat_of(server.socket(), "/fetches/count") > 0; }));
  server.terminate();
  EXPECT_EQ(server.wait(), 0);
  EXPECT_EQ(reader.wait(), 0);
}

/// In a client: a thread touches an absent page while its server is dead; it waits, and is never shown a byte.
int wait_for_a_dead_server(const TestServer& server, Attached& attached, std::span<std::byte> memory) {
  std::atomic<pid_t> toucher{0};
  static std::atomic<int> outcome{0};  // 1: saw a byte, 2: SIGBUS
  static thread_local sigjmp_buf back;
  struct sigaction action{};
  action.sa_handler = [](int) { siglongjmp(back, 1); };
  ::sigaction(SIGBUS, &action, nullptr);
  std::thread thread([&] {
    toucher = static_cast<pid_t>(::syscall(SYS_gettid));
    if (sigsetjmp(back, 1) == 0) {
      [[maybe_unused]] const volatile std::byte absent = memory[kPageSize.value * 200];
      outcome = 1;
    } else {
      outcome = 2;
    }
  });
  UFFDA_CLIENT_CHECK(eventually([&] { return toucher != 0 && blocked_in_fault(toucher); }));
  server.kill();
  // The connection tells of the death; the thread waits on, because this process holds its userfaultfd.
  UFFDA_CLIENT_CHECK(attached.client.stats().error().code() == Errc::gone);
  UFFDA_CLIENT_CHECK(blocked_in_fault(toucher) && outcome == 0);
  // What the holder of the descriptor then does: SIGBUS for whoever waits.
  const Address page{reinterpret_cast<std::uintptr_t>(memory.data()) + kPageSize.value * 200};
  UFFDA_CLIENT_CHECK(attached.userfault->poison(page, kPageSize, os::Wake::yes).error == 0);
  thread.join();
  UFFDA_CLIENT_CHECK(outcome == 2);
  attached.userfault.reset();  // or the munmap that follows would wait for somebody to read its event
  return 0;
}

TEST_F(ServerProcess, FaultsOfAKilledServersClientWaitForWhoHoldsTheUserfaultfd) {
  if (!userfaultfd_works()) GTEST_SKIP() << "userfaultfd is not permitted here: needs CAP_SYS_PTRACE";
  const TestServer server(directory_, options("error+", "?range=819200-823296&mode=never"));
  ASSERT_TRUE(server.ready());
  ForkedProcess client([&] {
    auto attached = attach_to(server.socket(), usual_features());
    UFFDA_CLIENT_CHECK(attached);
    auto memory = map_export(*attached, "disk");
    UFFDA_CLIENT_CHECK(memory);
    return wait_for_a_dead_server(server, *attached, memory->bytes());
  });
  EXPECT_EQ(client.wait(), 0);
}

TEST_F(ServerProcess, AClientThatExitsIsForgotten) {
  if (!userfaultfd_works()) GTEST_SKIP() << "userfaultfd is not permitted here: needs CAP_SYS_PTRACE";
  ServeOptions wish = options();
  wish.max_clients = 2;
  const TestServer server(directory_, wish);
  ASSERT_TRUE(server.ready());
  const std::size_t before = server.descriptors();
  const auto come_and_go = [&] {
    auto attached = attach_to(server.socket(), usual_features());
    UFFDA_CLIENT_CHECK(attached);
    auto memory = map_export(*attached, "disk");
    UFFDA_CLIENT_CHECK(memory && !Pattern::mismatch(memory->bytes(), 0));
    return 0;
  };
  // More in turn than the limit allows at once: who is dead makes room when it is needed.
  for (int i = 0; i < 6; ++i) EXPECT_EQ(ForkedProcess(come_and_go).wait(), 0);
  EXPECT_TRUE(eventually([&] { return stat_of(server.socket(), "/clients/address_spaces") == 0; }));
  EXPECT_TRUE(eventually([&] { return server.descriptors() <= before; }));
}

TEST_F(ServerProcess, TheDeviceIsPassedOnOrRefusedWithTheRemedy) {
  const TestServer server(directory_, options());
  ASSERT_TRUE(server.ready());
  auto client = HandoffClient::connect(server.socket());
  ASSERT_TRUE(client);
  const auto device = client->device();
  if (device) {
    EXPECT_GE(::fcntl(device->get(), F_GETFL), 0);
  } else {
    EXPECT_EQ(device.error().code(), Errc::permission_denied);
    EXPECT_THAT(device.error().context(), HasSubstr("/dev/userfaultfd"));
  }
}

TEST_F(ServerProcess, AnotherUserIsRefusedUnlessListed) {
  if (::geteuid() != 0) GTEST_SKIP() << "becoming another user needs root";
  constexpr uid_t kNobody = 65534;
  ASSERT_EQ(::chmod(directory_.path("").c_str(), 0711), 0);
  const auto ask_as_nobody = [&](const TestServer& server, Errc expected) {
    return ForkedProcess([&, expected] {
             UFFDA_CLIENT_CHECK(::setresuid(kNobody, kNobody, kNobody) == 0);
             auto client = HandoffClient::connect(server.socket());
             const auto answer = client ? client->open("disk") : fail(client.error().code(), client.error().context());
             if (expected == Errc::again) return answer ? 0 : 1;  // `again` stands for: it is let in
             UFFDA_CLIENT_CHECK(!answer && answer.error().code() == expected);
             return 0;
           })
        .wait();
  };
  const TestServer closed(directory_, options());
  ASSERT_TRUE(closed.ready());
  EXPECT_EQ(ask_as_nobody(closed, Errc::permission_denied), 0);
  ASSERT_EQ(::chmod(closed.socket().c_str(), 0666), 0);  // even where the path lets everybody in
  EXPECT_EQ(ask_as_nobody(closed, Errc::permission_denied), 0);
  ServeOptions wish = options();
  wish.socket_path = directory_.path("open.sock");
  wish.allow_uids = {kNobody};
  const TestServer open(directory_, wish);
  ASSERT_TRUE(open.ready());
  EXPECT_EQ(ask_as_nobody(open, Errc::again), 0);
}

}  // namespace
}  // namespace uffda::test
