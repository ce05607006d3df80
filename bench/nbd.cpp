// nbd: beside what else there is for an export that is far away: nbdfuse on the same nbdkit, and reading the whole
// object first. The server delays every read (nbdkit --filter=delay). All ways take turns in every round.
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <barrier>
#include <chrono>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "common/bench.h"
#include "common/real_file.h"
#include "common/uffda_memory.h"

extern char** environ;

namespace {

using namespace bench;

constexpr std::size_t kFile = std::size_t{64} << 20U;
constexpr std::size_t kFaults = 64;
constexpr std::size_t kTouched = 200;  // of the job that needs little of the object
constexpr int kDelayMs = 2;

/// A program in the background, killed when this goes.
class Background {
 public:
  explicit Background(std::vector<std::string> command) {
    std::vector<char*> words;
    for (std::string& word : command) words.push_back(word.data());
    words.push_back(nullptr);
    if (::posix_spawnp(&child_, words.front(), nullptr, nullptr, words.data(), environ) != 0) child_ = -1;
  }
  ~Background() {
    if (child_ <= 0) return;
    ::kill(child_, SIGTERM);
    ::waitpid(child_, nullptr, 0);
  }
  Background(const Background&) = delete;
  Background& operator=(const Background&) = delete;

 private:
  pid_t child_ = -1;
};

bool appears(const std::string& path) {
  for (int i = 0; i < 500; ++i) {
    if (::access(path.c_str(), F_OK) == 0) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return false;
}

/// nbdkit that answers every read so many milliseconds later.
struct Server {
  Server(const std::string& directory, const std::string& file, int delay_ms)
      : socket(std::filesystem::absolute(fmt::format("{}/nbd{}.sock", directory, delay_ms)).string()) {
    std::filesystem::remove(socket);
    process.emplace(std::vector<std::string>{"nbdkit", "--foreground", "--readonly", "--threads", "64", "--unix",
                                             socket, "--filter=delay", "file", std::filesystem::absolute(file).string(),
                                             fmt::format("delay-read={}ms", delay_ms)});
    if (!appears(socket)) die("nbdkit did not start");
  }
  std::string socket;
  std::optional<Background> process;
};

/// The same export through nbdfuse, mounted while this lives.
struct Mounted {
  Mounted(std::string at, const std::string& socket) : directory(std::move(at)) {
    std::filesystem::create_directories(directory);
    process.emplace(std::vector<std::string>{"nbdfuse", "-r", directory + "/file", "--unix", socket});
    if (!appears(directory + "/file")) die("nbdfuse did not start");
  }
  ~Mounted() { Background unmount({"fusermount3", "-u", "-z", directory}); }
  Mounted(const Mounted&) = delete;
  Mounted& operator=(const Mounted&) = delete;
  std::string directory;
  std::optional<Background> process;
};

void touch(const std::byte* page) {
  [[maybe_unused]] const volatile std::byte touched = *const_cast<const volatile std::byte*>(page);
}

double seconds(const std::function<void()>& work) {
  const std::int64_t start = now_ns();
  work();
  return static_cast<double>(now_ns() - start) / 1e9;
}

/// Milliseconds until `count` threads that start together have each touched a page of their own, far from the others'.
double concurrent_ms(const std::byte* data, std::size_t count) {
  std::barrier<> together(static_cast<std::ptrdiff_t>(count) + 1);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < count; ++i) {
    threads.emplace_back([&, page = data + (i + 1) * (kFile / (kFaults + 2)) / kPage * kPage] {
      together.arrive_and_wait();
      touch(page);
      together.arrive_and_wait();
    });
  }
  together.arrive_and_wait();
  const double took = seconds([&] { together.arrive_and_wait(); });
  for (std::thread& thread : threads) thread.join();
  return took * 1e3;
}

/// Milliseconds of a job that touches a few pages at random.
double job_ms(const std::byte* data, const std::vector<std::uint32_t>& order) {
  return seconds([&] {
           for (std::size_t i = 0; i < kTouched; ++i) touch(data + std::size_t{order[i]} * kPage);
         }) *
         1e3;
}

struct Rounds {
  std::vector<double> one, many, one_further, many_further, job, job_fuse, many_fuse, job_whole;
};

UffdaMemory lazily(const std::string& uri) {
  return UffdaMemory::of(must(uffda::open_source(uri)), uffda::HandlerPolicy::per_cpu);
}

void run_round(const Server& server, const Server& near, const std::string& directory,
               const std::vector<std::uint32_t>& order, Rounds& rounds) {
  const std::string uri = "nbd+unix:///?socket=" + server.socket;
  rounds.one.push_back(concurrent_ms(lazily(uri).memory.bytes().data(), 1));
  rounds.many.push_back(concurrent_ms(lazily(uri).memory.bytes().data(), kFaults));
  rounds.job.push_back(job_ms(lazily(uri).memory.bytes().data(), order));
  const std::string near_uri = "nbd+unix:///?socket=" + near.socket;
  rounds.one_further.push_back(rounds.one.back() - concurrent_ms(lazily(near_uri).memory.bytes().data(), 1));
  rounds.many_further.push_back(rounds.many.back() - concurrent_ms(lazily(near_uri).memory.bytes().data(), kFaults));
  const auto through_fuse = [&](const std::function<double(const std::byte*)>& measure) {
    const Mounted mounted(directory + "/nbdfuse", server.socket);
    const PlainMapping mapping(mounted.directory + "/file", kFile, PlainMapping::Advice::random);
    return measure(mapping.data());
  };
  rounds.many_fuse.push_back(through_fuse([](const std::byte* data) { return concurrent_ms(data, kFaults); }));
  rounds.job_fuse.push_back(through_fuse([&](const std::byte* data) { return job_ms(data, order); }));
  rounds.job_whole.push_back(seconds([&] {
                               UffdaMemory whole = lazily(uri);
                               const auto done = whole.memory.populate({.start = {0}, .length = {kFile}},
                                                                       uffda::Deadline::after(std::chrono::minutes(2)));
                               if (!done) die(done.error().message());
                               job_ms(whole.memory.bytes().data(), order);
                             }) *
                             1e3);
}

}  // namespace

int main(int argc, char** argv) {
  Report report("nbd", argc, argv);
  const std::string directory = report.option("dir", "build/bench");
  std::filesystem::create_directories(directory);
  if (const auto why = NbdFuse::cannot()) {
    report.skip("nbd", *why);
    report.finish();
    return 0;
  }
  const RealFile file(directory + "/nbd.bin", kFile);
  file.cache(kFile);
  const Server server(directory, file.path(), kDelayMs);
  const Server near(directory, file.path(), 0);
  const std::vector<std::uint32_t> order = shuffled(kFile / kPage);
  Rounds rounds;
  const int count = report.quick() ? 3 : 9;
  for (int round = 0; round < count; ++round) {
    Report::progress(fmt::format("nbd: round {} of {}", round + 1, count));
    run_round(server, near, directory, order, rounds);
  }
  const std::string delay = fmt::format("{} ms away", kDelayMs);
  report.compare_rounds({.name = fmt::format("nbd: 64 faults at once, {}", delay),
                         .unit = "ms",
                         .peer_name = "one fault",
                         .target = std::nullopt},
                        rounds.many, rounds.one);
  report.compare_rounds({.name = fmt::format("nbd: what {} ms of distance add to 64 faults at once", kDelayMs),
                         .unit = "ms",
                         .peer_name = "to one fault",
                         .target = kAboutOneRoundTrip},
                        rounds.many_further, rounds.one_further);
  report.compare_rounds({.name = fmt::format("nbd: 64 faults at once, {}", delay),
                         .unit = "ms",
                         .peer_name = "nbdfuse",
                         .target = Target{.bound = Bound::at_most, .ratio = 1}},
                        rounds.many, rounds.many_fuse);
  report.compare_rounds({.name = fmt::format("nbd: {} random pages of 64 MiB, {}", kTouched, delay),
                         .unit = "ms",
                         .peer_name = "nbdfuse",
                         .target = Target{.bound = Bound::at_most, .ratio = 1}},
                        rounds.job, rounds.job_fuse);
  report.compare_rounds({.name = fmt::format("nbd: {} random pages of 64 MiB, {}", kTouched, delay),
                         .unit = "ms",
                         .peer_name = "reading all first",
                         .target = std::nullopt},
                        rounds.job, rounds.job_whole);
  report.finish();
}
