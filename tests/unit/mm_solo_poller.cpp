// Which polling reader reads alone, and that the others come back.
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <thread>

#include "mm/solo_poller.h"

namespace uffda {
namespace {

constexpr std::array<int, 3> kCpus{4, 7, 9};
constexpr Duration kAside = std::chrono::milliseconds(100);  // so long that the soloist below gets to read

/// Reader `self` reads one message at a time until it is to look, and finds the faulting thread on `cpu`.
unsigned serve_and_look(SoloPoller& poller, unsigned self, int cpu) {
  unsigned served = 1;
  while (!poller.served(self, 1, 0)) ++served;
  poller.looked(cpu);
  return served;
}

/// While the soloist goes on reading, faults or (`removes` is 1) a flood of events.
bool stands_aside(SoloPoller& poller, unsigned self, unsigned soloist, std::size_t removes = 0) {
  std::atomic<bool> enough = false;
  std::atomic<bool> begun = false;
  std::thread reads([&] {
    for (; !enough; begun = true) poller.served(soloist, 1, removes);
  });
  while (!begun) std::this_thread::yield();
  const bool aside = poller.stood_aside(self);
  enough = true;
  reads.join();
  return aside;
}

TEST(SoloPollers, WhoIsOnTheCpuOfTheFaultsReadsAlone) {
  SoloPoller poller(kAside);
  poller.start(kCpus);
  serve_and_look(poller, 0, kCpus[1]);
  for (unsigned self = 0; self < 3; ++self) EXPECT_FALSE(poller.stood_aside(self)) << "one look is chance";
  serve_and_look(poller, 2, kCpus[1]);
  EXPECT_TRUE(stands_aside(poller, 0, 1));
  EXPECT_FALSE(poller.stood_aside(1)) << "whoever looked";
  EXPECT_TRUE(stands_aside(poller, 2, 1));
}

TEST(SoloPollers, TheOthersAreBackWhenTheFaultsComeFromElsewhere) {
  SoloPoller poller(kAside);
  poller.start(kCpus);
  for (int i = 0; i < 2; ++i) serve_and_look(poller, 1, kCpus[1]);
  EXPECT_EQ(serve_and_look(poller, 1, kCpus[1]), SoloPoller::kLookEveryAlone);
  EXPECT_TRUE(stands_aside(poller, 0, 1));
  serve_and_look(poller, 1, kCpus[2]);
  EXPECT_FALSE(poller.stood_aside(0));
  serve_and_look(poller, 0, kCpus[2]);
  EXPECT_TRUE(poller.stood_aside(1));
}

TEST(SoloPollers, TheOthersAreBackWhenSeveralFaultsComeAtOnce) {
  SoloPoller poller(kAside);
  poller.start(kCpus);
  for (int i = 0; i < 2; ++i) serve_and_look(poller, 1, kCpus[1]);
  EXPECT_TRUE(stands_aside(poller, 0, 1));
  EXPECT_FALSE(poller.served(1, 2, 0));
  EXPECT_FALSE(poller.stood_aside(0));
}

TEST(SoloPollers, NobodyReadsAloneWhereTheThreadIsNotKnownOrThereIsOneReader) {
  SoloPoller poller(kAside);
  poller.start(kCpus);
  for (int i = 0; i < 4; ++i) serve_and_look(poller, 0, -1);
  for (unsigned self = 0; self < 3; ++self) EXPECT_FALSE(poller.stood_aside(self));
  SoloPoller one;
  one.start(std::span(kCpus).first(1));
  for (int i = 0; i < 4; ++i) serve_and_look(one, 0, kCpus[0]);
  EXPECT_FALSE(one.stood_aside(0));
  EXPECT_FALSE(one.stood_aside(1));
}

TEST(SoloPollers, AFloodIsReadByOneUntilSomethingElseIsInIt) {
  SoloPoller poller(kAside);
  poller.start(kCpus);
  EXPECT_FALSE(poller.served(2, SoloPoller::kFlood - 1, SoloPoller::kFlood - 1));
  EXPECT_FALSE(poller.stood_aside(0)) << "it may be no flood";
  EXPECT_FALSE(poller.served(2, 16, 16));
  EXPECT_TRUE(stands_aside(poller, 0, 2, 1));
  EXPECT_FALSE(poller.stood_aside(2));
  EXPECT_FALSE(poller.served(0, 16, 16)) << "who looks now and then takes some of it";
  EXPECT_TRUE(stands_aside(poller, 1, 2, 1));
  EXPECT_FALSE(poller.stood_aside(2));
  EXPECT_FALSE(poller.served(2, 16, 16)) << "many at once are no work for others here";
  EXPECT_TRUE(stands_aside(poller, 0, 2, 1));
  EXPECT_FALSE(poller.served(2, 1, 0)) << "a fault";
  EXPECT_FALSE(poller.stood_aside(0));
  EXPECT_FALSE(poller.served(2, SoloPoller::kFlood - 1, SoloPoller::kFlood - 1));
  EXPECT_FALSE(poller.stood_aside(0)) << "the count begins anew";
}

TEST(SoloPollers, WhoIsHeldUpReadsAloneNoMore) {
  SoloPoller poller(kAside);
  poller.start(kCpus);
  for (int i = 0; i < 2; ++i) serve_and_look(poller, 1, kCpus[1]);
  EXPECT_TRUE(poller.stood_aside(0)) << "it has its time";
  EXPECT_FALSE(poller.stood_aside(0));
}

TEST(SoloPollers, AStopEndsIt) {
  SoloPoller poller(kAside);
  poller.start(kCpus);
  for (int i = 0; i < 2; ++i) serve_and_look(poller, 1, kCpus[1]);
  std::thread aside([&] {
    while (poller.stood_aside(0)) continue;
  });
  poller.stop();
  aside.join();
  for (int i = 0; i < 2; ++i) serve_and_look(poller, 1, kCpus[1]);
  EXPECT_FALSE(poller.stood_aside(0)) << "and none begins";
}

}  // namespace
}  // namespace uffda
