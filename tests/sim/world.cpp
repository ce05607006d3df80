#include "sim/world.h"

#include <algorithm>

#include "memtypes/builtin.h"
#include "sim/crash.h"
#include "sim/program.h"

namespace uffda::sim {
namespace {

/// Shared memory by the other route to CONTINUE: a table without a hook.
class AttributesOnlyType final : public MemoryType {
 public:
  [[nodiscard]] std::string_view name() const override { return "attributes"; }
  [[nodiscard]] const UffdOps* ops() const override { return &ops_; }
  [[nodiscard]] ByteCount folio_size() const override { return shmem_->folio_size(); }
  Result<std::unique_ptr<Backing>> create(ByteCount size, const std::string& name) const override {
    return shmem_->create(size, name);
  }
  Result<std::unique_ptr<Backing>> adopt(ByteCount size, os::UniqueFd fd) const override {
    return shmem_->adopt(size, std::move(fd));
  }

 private:
  std::unique_ptr<MemoryType> shmem_ = make_shmem_type();
  UffdOps ops_{.modes = shmem_->ops()->modes, .ioctls = shmem_->ops()->ioctls};
};

std::uint64_t sometimes(Random& random, std::uint64_t one_in) { return random.one_in(2) ? one_in : 0; }

SourceHabits habits_of(Random& random) {
  SourceHabits habits;
  habits.delay = std::chrono::microseconds(1 + random.below(random.one_in(2) ? 300 : 20'000));
  habits.at_once_one_in = random.below(4);
  habits.pushes = random.one_in(3) ? static_cast<unsigned>(random.below(40)) : 0;
  habits.pushes_change = random.one_in(2);
  habits.immediate = random.one_in(4);
  if (random.one_in(2)) return habits;  // half of the sources never fail
  habits.error_one_in = sometimes(random, 15);
  habits.short_one_in = sometimes(random, 30);
  habits.dropped_one_in = sometimes(random, 50);
  habits.late_one_in = sometimes(random, 40);
  habits.never_one_in = sometimes(random, 60);
  habits.bad_page_one_in = sometimes(random, 40);
  return habits;
}

}  // namespace

namespace {

void plan_writing(Plan& plan, Random& random) {
  plan.writes_back = true;
  plan.syncs = static_cast<unsigned>(random.below(80));
  if (random.one_in(2)) plan.looks = static_cast<unsigned>(random.below(80));
  for (Plan::Object& object : plan.objects) {
    SourceHabits& source = object.source;
    source.writable = object.type != "anon";
    source.reserves = random.one_in(2);
    source.pushes = 0;  // what it offers may be older than what it took
    if (random.one_in(2)) continue;
    source.write_error_one_in = sometimes(random, 10);
    source.write_late_one_in = sometimes(random, 40);
    source.flush_error_one_in = sometimes(random, 10);
    source.no_space_one_in = sometimes(random, 4);
  }
}

/// A server that dies serves other processes only, and no memory that nobody but itself has.
void plan_crashes(Plan& plan, Random& random) {
  const auto remote = [](Plan::Handling handling) { return handling == Plan::Handling::remote; };
  if (!std::ranges::all_of(plan.processes, remote) || random.one_in(4)) return;
  plan.crashes = 1 + static_cast<unsigned>(random.below(4));
  plan.monitors = false;
  plan.changes_mappings = plan.changes_mappings || random.one_in(2);
  for (Plan::Object& object : plan.objects)
    if (object.type == "anon") object.type = "shmem";
  if (!plan.writes_back && random.one_in(4)) return;
  plan.punches = plan.pollution = false;
  plan_writing(plan, random);
}

}  // namespace

Plan plan_of(std::uint64_t seed) {
  Random random(seed ^ 0x75666664);
  Plan plan;
  plan.schedule = {.seed = seed,
                   .switch_one_in = std::uint64_t{1} << random.below(6),
                   .stall_one_in = random.one_in(4) ? 0 : 50 + random.below(500),
                   .stall = std::chrono::microseconds(10 + random.below(5000))};
  plan.faults = {.no_memory_one_in = sometimes(random, 50),
                 .write_fails_one_in = random.one_in(4) ? 60U : 0U,
                 .interrupted_one_in = sometimes(random, 10),
                 .no_descriptor_one_in = sometimes(random, 3)};
  constexpr std::array<std::uint64_t, 6> kLimits{32, 48, 64, 64, 256, 4096};
  plan.core = {.budget = {kLimits.at(random.below(kLimits.size())) * kPage},
               .warn_after = std::chrono::milliseconds(20),
               .deadline = std::chrono::milliseconds(200 + random.below(300))};
  constexpr std::array<const char*, 5> kTypes{"shmem", "shmem", "shmem", "attributes", "anon"};
  for (std::uint64_t i = 1 + random.below(3); i-- != 0;) {
    const std::uint64_t pages = 1 + random.below(random.one_in(2) ? 16 : 200);
    plan.objects.push_back({.type = kTypes.at(random.below(kTypes.size())),
                            .size = {pages * kPage - (random.one_in(2) ? random.below(kPage) : 0)},
                            .source = habits_of(random)});
  }
  constexpr std::array kHandlings{Plan::Handling::remote, Plan::Handling::remote, Plan::Handling::local,
                                  Plan::Handling::in_thread};
  for (std::uint64_t i = 1 + random.below(3); i-- != 0;)
    plan.processes.push_back(kHandlings.at(random.below(kHandlings.size())));
  plan.threads = 1 + static_cast<unsigned>(random.below(3));
  plan.steps = 5 + static_cast<unsigned>(random.below(25));
  plan.readers = 1 + static_cast<unsigned>(random.below(3));
  plan.batch = random.one_in(2) ? 16 : 1 + static_cast<unsigned>(random.below(3));
  plan.changes_mappings = random.one_in(2);
  // Against both at once there is no defence: a page that was punched and touched from outside is zero, and cached.
  plan.punches = random.one_in(4);
  plan.pollution = !plan.punches && random.one_in(2);
  plan.direct_reads = plan.punches || random.one_in(2) ? 0 : static_cast<unsigned>(random.below(20));
  // At the end, so that what the seeds of older faults decide stays as it was.
  plan.monitors = random.one_in(2);
  plan.async = random.one_in(3);
  // Between a look at a page and what follows from it a monitor may do a lot. (With little memory, which is handed from
  // fetch to fetch, deadlines would pass.)
  constexpr ByteCount kEnough{256 * kPage};
  if (plan.monitors && plan.core.budget >= kEnough) plan.schedule.stall_one_in = 20 + random.below(50);
  // What a monitor has filled does not change.
  for (Plan::Object& object : plan.objects) object.source.pushes_change &= !plan.monitors;
  // From outside nobody changes what only we have.
  if (!plan.monitors && !plan.punches && !plan.pollution && random.one_in(2)) plan_writing(plan, random);
  for (Plan::Object& object : plan.objects)
    if (random.one_in(4)) object.budget = {(32 + random.below(64)) * kPage};
  plan_crashes(plan, random);
  if (plan.crashes != 0) plan.looks = 0;  // at a log of the library, which would die with it
  return plan;
}

std::string describe(const Plan& plan) {
  std::string text = fmt::format(
      "budget {} pages, deadline {} ms, {} readers, batches of {}", plan.core.budget.value / kPage,
      std::chrono::duration_cast<std::chrono::milliseconds>(plan.core.deadline).count(), plan.readers, plan.batch);
  for (const Plan::Object& object : plan.objects)
    text += fmt::format("; {} of {} bytes{}{}", object.type, object.size.value,
                        object.source.immediate ? ", immediate" : "",
                        object.budget.value == 0 ? "" : fmt::format(", budget {} pages", object.budget.value / kPage));
  for (const Plan::Handling handling : plan.processes) {
    constexpr std::array kNames{"remote", "local", "in-thread"};
    text += fmt::format("; a {} process of {} threads", kNames.at(static_cast<std::size_t>(handling)), plan.threads);
  }
  if (plan.monitors) text += plan.async ? "; monitors that follow writes" : "; monitors";
  if (plan.writes_back) text += "; what is stored is written back";
  if (plan.pollution) text += "; zero pages come from outside";
  if (plan.punches) text += "; holes come from outside";
  if (plan.crashes != 0) text += fmt::format("; the server dies up to {} times", plan.crashes);
  return text;
}

Totals& Totals::operator+=(const Totals& other) {
  touches += other.touches;
  sigbus += other.sigbus;
  fetches += other.fetches;
  failures += other.failures;
  timeouts += other.timeouts;
  evicted += other.evicted;
  deferred += other.deferred;
  events += other.events;
  forks += other.forks;
  unknown += other.unknown;
  pollution += other.pollution;
  pushes += other.pushes;
  direct_reads += other.direct_reads;
  told += other.told;
  protections += other.protections;
  scans += other.scans;
  stores += other.stores;
  written_back += other.written_back;
  write_failures += other.write_failures;
  syncs += other.syncs;
  looks += other.looks;
  crashes += other.crashes;
  asked_again += other.asked_again;
  dropped += other.dropped;
  return *this;
}

std::string describe(const Totals& totals) {
  return fmt::format(
      "{} touches ({} SIGBUS), {} direct reads, {} fetches ({} failed, {} timed out), {} pushes, {} folios evicted, "
      "{} resolutions put off, {} events, {} forks, {} unknown faults, {} pages touched from outside, {} faults told "
      "to monitors, {} protections, {} scans for writes, {} stores, {} folios written back ({} writes failed), {} "
      "syncs, {} looks at logs, {} deaths of the server ({} requests asked again), {} copied pages dropped",
      totals.touches, totals.sigbus, totals.direct_reads, totals.fetches, totals.failures, totals.timeouts,
      totals.pushes, totals.evicted, totals.deferred, totals.events, totals.forks, totals.unknown, totals.pollution,
      totals.told, totals.protections, totals.scans, totals.stores, totals.written_back, totals.write_failures,
      totals.syncs, totals.looks, totals.crashes, totals.asked_again, totals.dropped);
}

World::World(const Plan& plan, Totals& totals) : plan_(plan), totals_(totals), kernel_(plan.faults) {}
World::~World() = default;

std::uint64_t World::Object::dirty() const {
  std::uint64_t count = 0;
  for (FolioIndex i = 0; i < object->folios(); ++i) count += object->states().get(i) == PageState::dirty ? 1 : 0;
  return count;
}

void World::ask(const std::function<void()>& request) {
  if (crashes_) return crashes_->ask(request);
  request();
}

void World::make_core() {
  auto core = Core::create(plan_.core);
  expect(core.has_value(), "there is no core");
  core_ = *core;
  core_->on_source_failure([](const SourceFailure&) { expect_no_lock("the failure hook"); });
  expect(core_->types().register_type(make_shmem_type()).has_value(), "shmem is refused");
  expect(core_->types().register_type(make_anon_type()).has_value(), "anon is refused");
  expect(core_->types().register_type(std::make_unique<AttributesOnlyType>()).has_value(), "attributes is refused");
}

void World::make_object(std::size_t which, Successor successor) {
  const Plan::Object& wanted = plan_.objects[which];
  Object& made = objects_[which];
  auto object =
      core_->create_object(std::make_unique<SimulatedSource>(made.truth, wanted.source), wanted.type, wanted.budget,
                           wanted.source.writable ? OpenFor::writing : OpenFor::reading, std::move(successor));
  expect(object.has_value(), "object {} cannot be made: {}", which, object ? "" : object.error().message());
  made.cached = (*object)->cached();
  made.file = kernel_.file((*object)->backing().mapping_fd());
  made.object = std::move(*object);
}

void World::start_server() {
  for (const Plan::Object& wanted : plan_.objects) {
    objects_.push_back(
        {.object = nullptr, .truth = std::make_shared<Truth>(objects_.size(), wanted.size), .file = nullptr});
    if (wanted.source.writable) objects_.back().truth->set_written_back();
  }
  kernel_.on_refused([this](const File& file, std::uint64_t page) {
    for (const Object& object : objects_) {
      if (object.file.get() == &file) object.truth->note_failure(page);
    }
  });
  if (plan_.crashes != 0) {
    crashes_ = std::make_unique<Crashes>(*this);
    return crashes_->start();
  }
  make_core();
  for (std::size_t i = 0; i < objects_.size(); ++i) make_object(i);
}

void World::run() {
  start_server();
  for (const Plan::Handling handling : plan_.processes) {
    programs_.push_back(std::make_unique<Program>(*this, kernel_.start_process(), handling));
    Program& program = *programs_.back();
    program.open();
    for (std::uint64_t i = 1 + random().below(2); i-- != 0;) program.map_something();
    program.start_threads();
  }
  if (plan_.punches || plan_.pollution) busy_.push_back(spawn("outsider", [this] { disturb(); }));
  for (std::size_t i = 0; plan_.direct_reads != 0 && i < objects_.size(); ++i) {
    if (objects_[i].cached) busy_.push_back(spawn(fmt::format("file {}", i), [this, i] { read_directly(i); }));
  }
  for (std::size_t i = 0; plan_.syncs != 0 && i < objects_.size(); ++i) {
    if (objects_[i].truth->written_back())
      busy_.push_back(spawn(fmt::format("sync {}", i), [this, i] { sync_often(i); }));
  }
  for (std::size_t i = 0; plan_.looks != 0 && i < objects_.size(); ++i) {
    if (objects_[i].truth->written_back())
      busy_.push_back(spawn(fmt::format("log {}", i), [this, i] { follow_log(i); }));
  }
  for (std::size_t i = 0; i < busy_.size(); ++i) join(busy_[i]);
  if (crashes_) crashes_->stop();
  check_quiet();
  end();
}

void World::disturb() {
  for (unsigned i = 0; i < 4 * plan_.steps; ++i) {
    sleep_for(random().up_to(std::chrono::milliseconds(2)));
    const Object& object = objects_[random().below(objects_.size())];
    const auto& file = object.file;
    if (!file) continue;
    const std::uint64_t page = random().below(object.truth->pages());
    ++totals_.pollution;
    if (plan_.punches) {
      trace("punches page {} of {} from outside", page, file->name);
      kernel_.punch(*file, page, page + 1);
    } else {
      for (std::uint64_t at = page; at < std::min(page + 8, file->pages()); ++at) kernel_.pollute(*file, at);
    }
  }
}

void World::read_directly(std::size_t which) {
  const Object& object = objects_[which];
  const Truth& truth = *object.truth;
  for (unsigned i = 0; i < plan_.direct_reads; ++i) {
    sleep_for(random().up_to(std::chrono::milliseconds(2)));
    const std::uint64_t start = random().below(truth.size().value);
    const std::uint64_t length = 1 + random().below(std::min(truth.size().value - start, 6 * kPage));
    const std::uint64_t end_page = align_up(start + length, kPage) / kPage;
    std::vector<std::uint64_t> oldest;
    for (std::uint64_t page = start / kPage; page < end_page; ++page) oldest.push_back(truth.settled(page));
    std::vector<std::byte> bytes(length);
    ++totals_.direct_reads;
    const bool populates = random().one_in(4);
    Result<void> done;
    ask([&] {
      const auto memory = object.object;
      const Deadline deadline = Deadline::after(plan_.core.deadline * 2);
      done = populates ? memory->populate({.start = {start}, .length = {length}}, deadline)
                       : memory->read({start}, bytes, deadline);
    });
    trace("reads {} bytes of object {} at {}: {}", length, which, start, done ? "ok" : done.error().message());
    bool may_fail = false;
    for (std::uint64_t page = start / kPage; page < end_page; ++page) {
      may_fail = may_fail || truth.failed(page);
      if (!done || populates) continue;
      const std::uint64_t from = std::max(start, page * kPage);
      const std::uint64_t part = std::min(start + length, (page + 1) * kPage) - from;
      expect(truth.is_version_since(page, oldest[page - start / kPage], std::span(bytes).subspan(from - start, part),
                                    from % kPage),
             "a read of page {} of object {} gives wrong bytes", page, which);
    }
    expect(done || may_fail || done.error().code() == Errc::timed_out,
           "a read of object {} fails, though its source never did: {}", which, done ? "" : done.error().message());
  }
}

void World::sync_often(std::size_t which) {
  const Object& object = objects_[which];
  const Truth& truth = *object.truth;
  std::uint64_t seen = 0;
  for (unsigned i = 0; i < plan_.syncs; ++i) {
    sleep_for(random().up_to(std::chrono::microseconds(800)));
    const std::uint64_t first = random().one_in(2) ? 0 : random().below(truth.pages());
    const std::uint64_t end = first + 1 + random().below(truth.pages() - first);
    std::vector<std::uint64_t> versions;
    for (std::uint64_t page = first; page < end; ++page) versions.push_back(truth.version(page));
    const ByteOffset start{first * kPage};
    const ByteCount length{std::min(end * kPage, truth.size().value) - start.value};
    ++totals_.syncs;
    Result<void> synced;
    ask([&] {
      const auto memory = object.object;
      std::uint64_t told = seen;  // known once the answer is
      synced = memory->sync({.start = start, .length = length}, Deadline::after(plan_.core.deadline * 2), told);
      seen = told;
    });
    trace("sync of pages {} to {} of object {}: {}", first, end, which, synced ? "ok" : synced.error().message());
    for (std::uint64_t page = first; synced && page < end; ++page) {
      expect(truth.flushed(page) >= versions[page - first], "page {} of object {} is not stored after a sync", page,
             which);
    }
    const std::string why = synced ? std::string() : synced.error().message();
    // An event that cannot be read, for want of a descriptor, keeps every resolution waiting.
    const bool unread = plan_.faults.no_descriptor_one_in != 0 && why.find("kept from writing") != std::string::npos;
    const bool before = crashes_ && why.find("before the server was restarted") != std::string::npos;
    expect(synced || truth.failed(first) || unread || before || why.find("simulated") != std::string::npos,
           "a sync of object {} fails, though its source never did: {}", which, synced ? "" : synced.error().message());
  }
}

/// What was stored since the last look, and before this one, is named.
void World::follow_log(std::size_t which) {
  const Object& object = objects_[which];
  const Truth& truth = *object.truth;
  const auto versions = [&] {
    std::vector<std::uint64_t> all;
    for (std::uint64_t page = 0; page < truth.pages(); ++page) all.push_back(truth.version(page));
    return all;
  };
  // An event that cannot be read, for want of a descriptor, keeps every resolution waiting.
  const bool may_fail = plan_.faults.no_descriptor_one_in != 0;
  const auto log = object.object->start_log(Deadline::after(plan_.core.deadline * 2));
  expect(log || may_fail, "no log of object {}: {}", which, log ? "" : log.error().message());
  if (!log) return;
  std::vector<std::uint64_t> copied = versions();
  for (unsigned i = 0; i < plan_.looks; ++i) {
    sleep_for(random().up_to(std::chrono::microseconds(800)));
    ++totals_.looks;
    const std::vector<std::uint64_t> before = versions();
    const auto found = (*log)->collect(Deadline::after(plan_.core.deadline * 2));
    expect(found || may_fail, "a look at the log of object {} fails: {}", which, found ? "" : found.error().message());
    if (!found) continue;
    const std::vector<std::uint64_t> after = versions();
    for (const FolioRange& range : *found) {
      for (FolioIndex page = range.first; page < range.end(); ++page) copied[page] = after[page];
    }
    for (std::uint64_t page = 0; page < truth.pages(); ++page) {
      expect(copied[page] >= before[page], "what was stored to page {} of object {} is in no answer", page, which);
    }
  }
  object.object->end_log();
}

void World::check_budget() const {
  std::uint64_t cached = 0;
  for (const Object& object : objects_) {
    if (!object.object) continue;
    std::uint64_t mine = 0;
    for (FolioIndex i = 0; i < object.object->folios(); ++i)
      mine += object.truth->written_back() ? is_present(object.object->states().get(i))
                                           : object.object->states().get(i) == PageState::clean;
    const std::uint64_t own = object.object->budget().limit().value / kPage;
    expect(mine <= own, "{} pages of object {} are cached, its budget is {}", mine, object.truth->object(), own);
    cached += mine;
  }
  expect(cached * kPage <= plan_.core.budget.value, "{} pages are cached, the budget is {}", cached,
         plan_.core.budget.value / kPage);
}

void World::check_quiet() {
  // Whatever is on its way arrives, and the evictor has its turn.
  sleep_for(std::chrono::seconds(5));
  trace("everybody has finished");
  std::uint64_t present = 0;
  std::uint64_t dirty = 0;
  std::size_t due = 0;
  for (Object& object : objects_) {
    check_object(object);
    if (!object.truth->written_back()) dirty += object.dirty();
    present += object.object->folios_present();
    due += object.object->fetches_under_way();
  }
  expect(core_->resident().value == present * kPage, "{} bytes count as resident, {} pages are",
         core_->resident().value, present);
  const std::uint64_t limit = plan_.core.budget.value / kPage;
  expect(present - dirty <= limit, "{} pages stay resident, {} of them dirty, the limit is {}", present, dirty, limit);
  expect(core_->apart().value == dirty * kPage, "{} bytes count apart, {} pages are dirty", core_->apart().value,
         dirty);
  expect(core_->staging().in_use() == due, "{} buffers are out, {} answers are due", core_->staging().in_use(), due);
}

void World::check_object(Object& object) {
  MemoryObject& memory = *object.object;
  const Truth& truth = *object.truth;
  const auto& file = object.file;
  std::uint64_t present = 0;
  for (FolioIndex i = 0; i < memory.folios(); ++i) {
    const std::string where = fmt::format("page {} of object {}", i, truth.object());
    expect(memory.states().pins(i) == 0, "{} stays pinned", where);
    const PageState state = memory.states().get(i);
    expect(state != PageState::evicting, "{} stays half evicted", where);
    if (!is_present(state)) continue;
    ++present;
    const auto cached = file->cache.find(i);
    if (cached == file->cache.end()) {
      expect(plan_.punches, "{} is clean and not cached", where);
      continue;
    }
    expect(truth.is_version_since(i, truth.settled(i), *cached->second), "{} is clean and wrong", where);
  }
  expect(memory.folios_present() == present, "object {} counts {} pages as present, {} are", truth.object(),
         memory.folios_present(), present);
  const std::size_t due = static_cast<SimulatedSource&>(memory.source()).answers_due();
  expect(memory.fetches_under_way() == due, "object {} waits for {} answers, {} are due", truth.object(),
         memory.fetches_under_way(), due);
}

void World::count(Core& core) {
  const Stats& stats = core.stats();
  totals_.fetches += stats.fetches;
  totals_.failures += stats.fetch_failures;
  totals_.timeouts += stats.fetch_timeouts;
  totals_.evicted += stats.folios_evicted;
  totals_.deferred += stats.wakes_deferred;
  totals_.events += stats.events;
  totals_.unknown += stats.faults_unknown;
  totals_.written_back += stats.folios_written_back;
  totals_.write_failures += stats.writeback_failures;
  for (const Object& object : objects_) {
    if (object.object) totals_.pushes += static_cast<SimulatedSource&>(object.object->source()).pushes();
  }
}

void World::end() {
  count(*core_);
  kernel_.on_refused(nullptr);
  for (const auto& program : programs_) program->close();
  for (Object& object : objects_) {
    const std::weak_ptr<MemoryObject> weak = object.object;
    object.object.reset();
    // Housekeeping may be looking at it.
    for (int i = 0; i < 100 && !weak.expired(); ++i) sleep_for(std::chrono::milliseconds(10));
    expect(weak.expired(), "object {} outlives everybody who uses it", object.truth->object());
  }
  // Whoever dropped it last is at its end, and stores what is left.
  for (int i = 0; i < 1000 && core_->resident().value != 0; ++i) sleep_for(std::chrono::milliseconds(10));
  for (const Object& object : objects_) {
    const bool all = !object.truth->written_back() || object.truth->has_all() || object.truth->failed(0);
    expect(all, "object {} has ended, and its source lacks what was stored", object.truth->object());
  }
  expect(core_->resident().value == 0, "{} bytes count as resident after the end", core_->resident().value);
  expect(core_->staging().in_use() == 0, "{} buffers are out after the end", core_->staging().in_use());
  core_.reset();
}

}  // namespace uffda::sim
