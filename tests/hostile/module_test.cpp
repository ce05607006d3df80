// Modules that break their contract (tests/hostile/modules/hostile.c), at page 16 and nowhere else. The rules:
//   1. The fault at hand ends, with an error that names the module and says what was wrong.
//   2. Neighbours show right bytes, before and afterwards.
//   3. Nothing leaks: descriptors are what they were once the object is gone. (What a call that has never returned
//      still uses stays; when it returns, that goes, too.)
//   4. Nothing hangs: whoever touches the page, and whoever ends the object, gets on at the deadline.
#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <mutex>
#include <thread>

#include "memtypes/builtin.h"
#include "modules/calls.h"
#include "modules/check.h"
#include "modules/loader.h"
#include "modules/module_source.h"
#include "modules/module_type.h"
#include "support/mm_kernel.h"
#include "support/mm_tickets.h"
#include "support/test_support.h"

namespace uffda {
namespace {

using testing::HasSubstr;

constexpr std::uint64_t kBadPage = 16;
constexpr std::uint64_t kPages = 64;
constexpr Duration kDeadline = std::chrono::seconds(2);  // of calls: what never returns costs this much
constexpr Duration kPatience = std::chrono::seconds(60);
constexpr ByteRange kBadRange{.start = {kBadPage * 4096}, .length = {4096}};

std::string module_file() {
  const char* directory = std::getenv("UFFDA_TEST_MODULES");
  return directory == nullptr ? std::string() : std::string(directory) + "/hostile.so";
}

/// Lets calls go that the module keeps.
void release_kept(bool on) {
  void* const object = ::dlopen(module_file().c_str(), RTLD_NOW | RTLD_NOLOAD);
  ASSERT_NE(object, nullptr);
  reinterpret_cast<void (*)(int)>(::dlsym(object, "hostile_release"))(on ? 1 : 0);
  ::dlclose(object);
}

class HostileModule : public testing::Test {
 protected:
  void SetUp() override {
    if (module_file().empty()) GTEST_SKIP() << "UFFDA_TEST_MODULES does not say where the modules are";
    auto offers = modules::read_offers(module_file(), {});
    ASSERT_TRUE(offers) << offers.error().message();
    offers_ = *std::move(offers);
    release_kept(false);
    descriptors_ = modules::open_descriptors();
    auto core = Core::create({.deadline = kPatience});
    ASSERT_TRUE(core);
    core_ = *core;
    ASSERT_TRUE(register_builtin_types(core_->types()));
    core_->on_source_failure([this](const SourceFailure& failure) {
      const std::scoped_lock lock(mutex_);
      failures_.push_back(failure.error.message());
    });
  }

  /// Rule 3, after the object is gone.
  void expect_nothing_left() {
    object_.reset();
    core_.reset();
    EXPECT_TRUE(test::eventually([&] { return modules::open_descriptors() <= descriptors_; }))
        << modules::open_descriptors() - descriptors_ << " descriptors are left";
  }

  Result<std::unique_ptr<PageSource>> open(const std::string& name, Duration deadline = kDeadline) {
    for (const auto& source : offers_.sources) {
      if (source->about().name == name)
        return modules::open_module_source(source, "module hostile.so", "mod:" + name, {}, deadline);
    }
    return fail(Errc::not_found, name);
  }
  Result<void> register_type(const std::string& name) {
    for (const auto& type : offers_.types) {
      if (type->about().name == name)
        return core_->types().register_type(modules::make_module_type(type, "module hostile.so", kDeadline));
    }
    return fail(Errc::not_found, name);
  }
  Result<void> make_object(Result<std::unique_ptr<PageSource>> source, const std::string& type) {
    object_ = UFFDA_TRY(core_->create_object(UFFDA_TRY(std::move(source)), type));
    return {};
  }

  void expect_right(std::uint64_t first, std::uint64_t count) {
    for (std::uint64_t i = first; i < first + count; ++i) {
      std::vector<std::byte> bytes(4096);
      const auto read = object_->read({i * 4096}, bytes, Deadline::after(kPatience));
      ASSERT_TRUE(read) << "page " << i << ": " << read.error().message();
      ASSERT_EQ(test::Pattern::mismatch(bytes, i * 4096), std::nullopt) << "page " << i;
    }
  }
  /// Who waits is woken before the failure is reported.
  std::string failure() {
    const auto last = [this] {
      const std::scoped_lock lock(mutex_);
      return failures_.empty() ? std::string() : failures_.back();
    };
    EXPECT_TRUE(test::eventually([&] { return !last().empty(); })) << "no failure was reported";
    return last();
  }
  /// Rules 1, 2 and 4, by reading and, where userfaultfd can be had, by touching mapped memory.
  void expect_the_bad_page_fails(const std::string& name, const std::string& words) {
    expect_right(kBadPage + 4, 2);
    std::vector<std::byte> bytes(4096);
    EXPECT_FALSE(object_->read(kBadRange.start, bytes, Deadline::after(kPatience)));
    EXPECT_THAT(failure(), HasSubstr("module hostile.so"));
    EXPECT_THAT(failure(), HasSubstr(name));
    EXPECT_THAT(failure(), HasSubstr(words));
    expect_right(0, kBadPage);
    expect_right(kBadPage + 1, kPages - kBadPage - 1);
    if (!test::userfaultfd_refused().empty()) return;
    const auto memory = test::LocalMemory::create(core_, object_);
    ASSERT_NE(memory, nullptr);
    EXPECT_EQ(test::touch(memory->data() + kBadPage * 4096), std::nullopt) << "SIGBUS";
    for (std::uint64_t i = 0; i < kPages; ++i) {
      if (i == kBadPage) continue;
      EXPECT_EQ(test::touch(memory->data() + i * 4096 + 5), test::Pattern::at(i * 4096 + 5)) << i;
    }
    memory->space->detach(memory->mapping.address(), {memory->mapping.bytes().size()});
  }

  modules::Offers offers_;
  std::shared_ptr<Core> core_;
  std::shared_ptr<MemoryObject> object_;
  std::mutex mutex_;
  std::vector<std::string> failures_;
  std::size_t descriptors_ = 0;
};

struct Quirk {
  std::string name;
  std::string words;  ///< what the error says
};
std::string quirk_name(const testing::TestParamInfo<Quirk>& info) {
  std::string name = info.param.name;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

// --- sources ---------------------------------------------------------------------------------------------------------

class HostileSource : public HostileModule, public testing::WithParamInterface<Quirk> {};

TEST_P(HostileSource, FailsThePageAtHandAndNothingElse) {
  const auto made = make_object(open(GetParam().name), "shmem");
  ASSERT_TRUE(made) << made.error().message();
  expect_the_bad_page_fails("source " + GetParam().name, GetParam().words);
  release_kept(true);  // a call that comes back late changes nothing
  expect_right(0, kBadPage);
  expect_nothing_left();
}

INSTANTIATE_TEST_SUITE_P(Modules, HostileSource,
                         testing::Values(Quirk{"short", "short read: 4095 of 4096 bytes"},
                                         Quirk{"boast", "it reported 8192 of 4096 bytes"},
                                         Quirk{"overrun", "it wrote beyond the end of its buffer"},
                                         Quirk{"number", "it returned -100000, which is no errno"},
                                         Quirk{"never", "it has not returned after"}, Quirk{"huge", "so sorry"},  //
                                         Quirk{"forget", "it was not completed within"},
                                         Quirk{"more", "it reported 8192 of 4096 bytes"},
                                         Quirk{"late", "it was not completed within"}),
                         quirk_name);

TEST_F(HostileModule, AHugeErrorIsCut) {
  ASSERT_TRUE(make_object(open("huge"), "shmem"));
  EXPECT_FALSE(object_->populate(kBadRange, Deadline::after(kPatience)));
  EXPECT_LT(failure().size(), 600U);
  EXPECT_THAT(failure(), HasSubstr("(cut)"));
  EXPECT_EQ(failure().find('\n'), std::string::npos);
  expect_nothing_left();
}

TEST_F(HostileModule, AFetchThatIsCompletedTwiceCountsOnce) {
  ASSERT_TRUE(make_object(open("twice"), "shmem"));
  const unsigned before = modules::complaints();
  testing::internal::CaptureStderr();
  expect_right(0, kPages);
  // The second answer comes after the first has let the reader go on.
  EXPECT_TRUE(test::eventually([&] { return modules::complaints() > before; }));
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              HasSubstr("module hostile.so, source twice: a fetch was completed twice"));
  expect_nothing_left();
}

TEST_F(HostileModule, ALateAnswerIsSaidAndItsBytesAreNotUsed) {
  ASSERT_TRUE(make_object(open("late"), "shmem"));
  EXPECT_FALSE(object_->populate(kBadRange, Deadline::after(kPatience)));
  testing::internal::CaptureStderr();
  const unsigned before = modules::complaints();
  release_kept(true);
  EXPECT_TRUE(test::eventually([&] { return modules::complaints() > before; }));
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("completed after its deadline"));
  EXPECT_EQ(object_->states().get(kBadPage), PageState::poisoned);
  expect_right(0, kBadPage);
  expect_nothing_left();
}

TEST_F(HostileModule, ASerialisedSourceThatIsStuckFailsAtOnceAndOthersGoOn) {
  ASSERT_TRUE(make_object(open("stuck"), "shmem"));
  expect_right(0, 4);
  EXPECT_FALSE(object_->populate(kBadRange, Deadline::after(kPatience)));
  EXPECT_FALSE(object_->populate({.start = {60 * 4096}, .length = {4096}}, Deadline::after(kPatience)));
  EXPECT_TRUE(test::eventually([&] { return failure().find("fetch has not returned") != std::string::npos; }))
      << failure();
  expect_right(0, 4);
  object_.reset();
  ASSERT_TRUE(make_object(open("good"), "shmem"));
  expect_right(0, kPages);
  release_kept(true);
  expect_nothing_left();
}

TEST_F(HostileModule, ASerialisedSourceIsCalledOnceAtATime) {
  ASSERT_TRUE(make_object(open("serial", kPatience), "shmem"));
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (std::uint64_t i = t; i < kPages; i += 4) {
        if (!object_->populate({.start = {i * 4096}, .length = {4096}}, Deadline::after(kPatience))) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0) << failure();
  expect_right(0, kPages);
}

TEST_F(HostileModule, OpeningFailsInTime) {
  const auto empty = open("open-empty");
  ASSERT_FALSE(empty);
  EXPECT_THAT(empty.error().message(), HasSubstr("module hostile.so, source open-empty: open"));
  const auto never = open("open-never");
  ASSERT_FALSE(never);
  EXPECT_EQ(never.error().code(), Errc::timed_out);
  EXPECT_THAT(never.error().message(), HasSubstr("module hostile.so, source open-never: open: it has not returned"));
  release_kept(true);
  expect_nothing_left();
}

// --- memory types ----------------------------------------------------------------------------------------------------

class HostileType : public HostileModule, public testing::WithParamInterface<Quirk> {};

TEST_P(HostileType, FailsThePageAtHandAndNothingElse) {
  ASSERT_TRUE(register_type(GetParam().name));
  const auto made = make_object(test::pattern_source({kPages * 4096}), GetParam().name);
  ASSERT_TRUE(made) << made.error().message();
  expect_the_bad_page_fails("memory type " + GetParam().name, GetParam().words);
  expect_nothing_left();
}

INSTANTIATE_TEST_SUITE_P(Modules, HostileType,
                         testing::Values(Quirk{"wrong-object", "is of another object"},
                                         Quirk{"wrong-index", "has number 17"},  //
                                         Quirk{"wrong-size", "has 8192 bytes"},
                                         Quirk{"misaligned", "is not aligned"},  //
                                         Quirk{"unlocked", "is not locked"}, Quirk{"unreferenced", "is not referenced"},
                                         Quirk{"double-release", "released twice?"},
                                         Quirk{"not-found", "it published a folio and does not find it"},
                                         Quirk{"aborted-write", "half of it is written"},
                                         Quirk{"endless-retry", "to ask again for folio 16"}),
                         quirk_name);

TEST_F(HostileModule, ATypeThatDoesNotReturnFailsInTime) {
  constexpr ByteRange kOther{.start = {40 * 4096}, .length = {4096}};
  ASSERT_TRUE(register_type("publish-never"));
  ASSERT_TRUE(make_object(test::pattern_source({kPages * 4096}), "publish-never"));
  ASSERT_TRUE(object_->populate(kOther, Deadline::after(kPatience)));
  EXPECT_FALSE(object_->populate(kBadRange, Deadline::after(kPatience)));
  EXPECT_THAT(failure(), HasSubstr("module hostile.so, memory type publish-never: publish"));
  const auto mapped = os::map_memory({4096}, PROT_READ, MAP_SHARED, object_->backing().mapping_fd(), kOther.start);
  ASSERT_TRUE(mapped);
  EXPECT_EQ(test::Pattern::mismatch(mapped->bytes(), kOther.start.value), std::nullopt) << "what is mapped stays right";
  release_kept(true);
  std::vector<std::byte> bytes(4096);
  EXPECT_TRUE(test::eventually([&] {
    return object_->read(kOther.start, bytes, Deadline::after(kPatience)).has_value();
  })) << "the call is back, and so is the memory";
  EXPECT_EQ(test::Pattern::mismatch(bytes, kOther.start.value), std::nullopt);
  expect_nothing_left();
}

TEST_F(HostileModule, WhatATypeDropsButStillFindsStaysCached) {
  ASSERT_TRUE(register_type("still-found"));
  ASSERT_TRUE(make_object(test::pattern_source({kPages * 4096}), "still-found"));
  expect_right(0, kPages);
  testing::internal::CaptureStderr();
  EXPECT_EQ(object_->evict_chunk(0), 0U);
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("it dropped a folio and still finds it: number 16"));
  expect_nothing_left();
}

TEST_F(HostileModule, DescriptorsAreChecked) {
  for (const auto& [type, words] : {std::pair{"short-mapping", "its descriptor's file has 4096 bytes"},
                                    std::pair{"no-descriptor", "which is no open descriptor"}}) {
    ASSERT_TRUE(register_type(type));
    const auto made = make_object(test::pattern_source({kPages * 4096}), type);
    ASSERT_FALSE(made) << type;
    EXPECT_THAT(made.error().message(), HasSubstr(words));
    EXPECT_THAT(made.error().message(), HasSubstr("module hostile.so"));
  }
  ASSERT_TRUE(register_type("writable-share"));
  ASSERT_TRUE(make_object(test::pattern_source({kPages * 4096}), "writable-share"));
  const auto shared = object_->share();
  ASSERT_FALSE(shared);
  EXPECT_THAT(shared.error().message(), HasSubstr("not open for reading only"));
  expect_nothing_left();
}

// --- isolated modules
// --------------------------------------------------------------------------------------------------

class IsolatedModule : public HostileModule {
 protected:
  void SetUp() override {
    HostileModule::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    const char* command = std::getenv("UFFDA");
    if (command == nullptr || *command == '\0') GTEST_SKIP() << "UFFDA does not say where the command is";
    command_ = command;
    load();
  }
  void load() {
    auto offers = modules::read_offers(module_file(), {.isolate = true, .command = command_});
    ASSERT_TRUE(offers) << offers.error().message();
    offers_ = *std::move(offers);
  }
  /// One page at a time, from where nobody reads ahead.
  void populate_one(std::uint64_t page) {
    ASSERT_TRUE(object_->populate({.start = {page * 4096}, .length = {4096}}, Deadline::after(kPatience))) << failure();
  }
  void expect_the_crash_fails_its_ranges_only(const std::string& source) {
    ASSERT_TRUE(make_object(open(source, kPatience), "shmem"));
    populate_one(40);
    populate_one(3);
    EXPECT_FALSE(object_->populate(kBadRange, Deadline::after(kPatience)));
    EXPECT_THAT(failure(), HasSubstr("module hostile.so, source " + source));
    EXPECT_THAT(failure(), HasSubstr("its process was killed by signal"));
    EXPECT_FALSE(object_->populate({.start = {50 * 4096}, .length = {4096}}, Deadline::after(kPatience)));
    expect_right(40, 1);
    expect_right(3, 1);
    object_.reset();
    // The same module again, in a new process.
    load();
    ASSERT_TRUE(make_object(open("good", kPatience), "shmem"));
    expect_right(0, kPages);
  }
  void TearDown() override {
    object_.reset();
    core_.reset();  // with the types
    offers_ = {};
    EXPECT_TRUE(test::eventually([] { return ::waitpid(-1, nullptr, WNOHANG) == -1 && errno == ECHILD; }))
        << "a process is left";
  }
  std::string command_;
};

TEST_F(IsolatedModule, ShowsTheSameBytes) {
  ASSERT_TRUE(make_object(open("good", kPatience), "shmem"));
  expect_right(0, kPages);
  ASSERT_TRUE(make_object(open("twice", kPatience), "shmem"));
  expect_right(0, kPages);
}

TEST_F(IsolatedModule, ACrashInTheMiddleOfAFetchFailsItsRangesOnly) { expect_the_crash_fails_its_ranges_only("crash"); }

TEST_F(IsolatedModule, ScribblingOverMemoryFailsItsRangesOnly) { expect_the_crash_fails_its_ranges_only("scribble"); }

TEST_F(IsolatedModule, ACrashWhenItIsOpenedIsAnError) {
  const auto source = open("open-crash", kPatience);
  ASSERT_FALSE(source);
  EXPECT_THAT(source.error().message(),
              HasSubstr("module hostile.so, source open-crash: open: its process was killed"));
}

TEST_F(IsolatedModule, AFetchThatNeverReturnsFailsInTimeAndItsProcessEnds) {
  ASSERT_TRUE(make_object(open("never"), "shmem"));
  EXPECT_FALSE(object_->populate(kBadRange, Deadline::after(kPatience)));
  EXPECT_THAT(failure(), HasSubstr("it has not returned after"));
  expect_right(0, kBadPage);
  object_.reset();
  offers_ = {};
}

TEST_F(IsolatedModule, CannotReachOut) {
  ASSERT_TRUE(make_object(open("grabby", kPatience), "shmem"));
  std::vector<std::byte> bytes(4096);
  const auto read = object_->read({0}, bytes, Deadline::after(kPatience));
  ASSERT_TRUE(read) << failure();
}

TEST_F(IsolatedModule, TypesAreCheckedThereToo) {
  ASSERT_TRUE(register_type("wrong-index"));
  ASSERT_TRUE(make_object(test::pattern_source({kPages * 4096}), "wrong-index"));
  EXPECT_FALSE(object_->populate(kBadRange, Deadline::after(kPatience)));
  EXPECT_THAT(failure(), HasSubstr("has number 17"));
  expect_right(0, kBadPage);
}

}  // namespace
}  // namespace uffda
