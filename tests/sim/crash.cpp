#include "sim/crash.h"

#include <algorithm>
#include <array>
#include <utility>

#include "sim/program.h"

namespace uffda::sim {
namespace {

/// What a dead server had: found by whoever looks for leaks, and never destroyed.
void leave(std::shared_ptr<void> what) {
  static auto* const left = new std::vector<std::shared_ptr<void>>;
  if (what) left->push_back(std::move(what));
}

}  // namespace

void Crashes::start() {
  start_server();
  killer_ = spawn("killer", [this] { kill_and_replace(); });
}

void Crashes::stop() {
  stopping_ = true;
  join(killer_);
}

void Crashes::kill_and_replace() {
  constexpr Duration kPatience = std::chrono::milliseconds(50);
  while (left_ != 0 && !stopping_) {
    aim();
    bool dead = false;
    while (!dead && !stopping_) dead = wait_for_death(now() + kPatience);
    if (!dead) break;
    bury();
    sleep_for(random().up_to(std::chrono::milliseconds(random().one_in(8) ? 2000 : 20)));
    start_server();
  }
  die_after(0);
}

/// Any point, as likely soon as late; or where a death in the wrong place would do harm.
void Crashes::aim() {
  constexpr std::array kMoments{Moment::event_read, Moment::event_read,   Moment::cache_written, Moment::cache_punched,
                                Moment::protected_, Moment::source_asked, Moment::source_written};
  if (random().one_in(2)) return die_after(1 + random().below(std::uint64_t{4} << random().below(13)));
  aimed_at_ = kMoments.at(random().below(kMoments.size()));
  die_at(aimed_at_);
}

/// Which may die as soon as it starts: over what its predecessor was about to do, now and then.
void Crashes::start_server() {
  while (true) {
    const bool dies = killer_ != nullptr && left_ != 0 && random().one_in(3);
    if (dies && random().one_in(2)) {
      die_at(aimed_at_);
    } else if (dies) {
      aim();
    }
    const std::uint64_t before = deaths();
    join(spawn_mortal("server", [this] { serve(); }));
    serving_since_ = before;
    if (deaths() == before) break;
    wait_for_death(now());
    bury();
  }
  paused_ = paused();
  dead_since_ = {};
  served_.wake_all();
}

Duration Crashes::paused() const { return dead_since_ == TimePoint{} ? paused_ : paused_ + (now() - dead_since_); }

void Crashes::serve() {
  world_.make_core();
  for (std::size_t i = 0; i < objects_.size(); ++i) make_object(i);
  // Another source may be slow to open.
  sleep_for(random().up_to(random().one_in(8) ? std::chrono::seconds(6) : std::chrono::microseconds(100)));
  adopt_spaces();
}

void Crashes::bury() {
  if (dead_since_ == TimePoint{}) dead_since_ = now();
  --left_;
  ++world_.totals_.crashes;
  if (world_.core_) world_.count(*world_.core_);
  for (World::Object& object : world_.objects_) {
    if (object.object) static_cast<SimulatedSource&>(object.object->source()).end_writes_of_the_dead();
    leave(std::exchange(object.object, nullptr));
  }
  for (const auto& program : world_.programs_) {
    if (program) leave(program->forget());
  }
  leave(std::exchange(world_.core_, nullptr));
}

void Crashes::ask(const std::function<void()>& request) {
  while (true) {
    while (serving_since_ != deaths()) served_.wait();
    const Fiber* const asked = spawn_mortal("request", request);
    join(asked);
    if (!died(asked)) return;
    ++world_.totals_.asked_again;
  }
}

void Crashes::make_object(std::size_t which) {
  KeptObject& kept = objects_[which];
  Successor successor{.number = static_cast<std::uint32_t>(which + 1), .kept = std::nullopt};
  if (kept.used) successor.kept.emplace(os::UniqueFd(kept.cache), os::UniqueFd(kept.states));
  world_.make_object(which, std::move(successor));
  if (kept.used) return;
  MemoryObject& object = *world_.objects_[which].object;
  kept = {.cache = object.backing().mapping_fd(), .states = object.states().fd(), .used = true};
}

KeptSpace* Crashes::new_place(int fd, std::uint64_t features) {
  places_.push_back(std::make_unique<KeptSpace>());
  places_.back()->fd = fd;
  places_.back()->features = features;
  return places_.back().get();
}

void Crashes::keep(AddressSpace& space, KeptSpace& place) {
  space.keep(place, [this](int fd, std::uint64_t features) { return new_place(fd, features); });
}

bool Crashes::knows(int fd) const {
  return std::ranges::any_of(places_, [fd](const auto& place) { return place->used.load() != 0 && place->fd == fd; });
}

Program& Crashes::program_of(int fd) const {
  for (const auto& program : world_.programs_) {
    if (program && program->process()->context() && program->process()->context()->fd() == fd) return *program;
  }
  violation("a userfaultfd is kept that nobody knows");
}

std::shared_ptr<AddressSpace> Crashes::new_space(const Program& program) const {
  const auto& process = program.process();
  return AddressSpace::create(world_.core_, world_.kernel_.wrap(process->context()),
                              fmt::format("process {}", process->id()));
}

void Crashes::attach(Program& program) {
  const Context& context = *program.process()->context();
  if (knows(context.fd())) return;
  auto space = new_space(program);
  KeptSpace& place = *new_place(context.fd(), context.features());
  keep(*space, place);
  place.used.store(1);
  program.adopt(std::move(space));
}

void Crashes::adopt_spaces() {
  struct Adopted {
    Program* program;
    std::shared_ptr<AddressSpace> space;
  };
  std::vector<Adopted> all;
  for (std::size_t i = 0; i < places_.size(); ++i) {
    KeptSpace& place = *places_[i];
    if (place.used.load() == 0) continue;
    Program& program = program_of(place.fd);
    const auto space = all.emplace_back(&program, new_space(program)).space;
    program.take(space);
    keep(*space, place);
  }
  for (const Adopted& adopted : all) {
    adopted.space->adopt([this](std::uint32_t number) { return world_.objects_[number - 1].object; },
                         [this](int fd) { return knows(fd); });
  }
  for (const World::Object& object : world_.objects_) object.object->mappers_known();
  for (const Adopted& adopted : all) adopted.program->start_readers();
}

}  // namespace uffda::sim
