// Saving a running machine: QEMU sends itself as for a live migration, and what comes is put into one image.
//
//   1. the machine runs on while its RAM comes, page by page; what it writes meanwhile comes again;
//   2. QEMU stops it, sends the rest and the devices: the only time that the guest notices;
//   3. the machine goes on, and a pack is made of the image.
#pragma once

#include <atomic>
#include <functional>
#include <string>

#include "uffda/deadline.h"
#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda::qemu {

/// What the machine is to do once it is saved.
enum class Afterwards : std::uint8_t {
  go_on,         ///< what it did before
  stay_stopped,  ///< so that its disks can be copied in the same state
};

struct SaveOptions {
  std::string qmp;     ///< path of QEMU's monitor
  std::string output;  ///< the pack; appears when it is whole
  Afterwards afterwards = Afterwards::go_on;
  int level = 3;                                                 ///< of the compression
  Duration deadline = std::chrono::minutes(10);                  ///< for the machine's own part
  std::function<void(ByteCount done, ByteCount size)> progress;  ///< of packing; may be null
  const std::atomic<bool>* cancel = nullptr;                     ///< set: give up; may be null
};

struct SaveResult {
  ByteCount ram;      ///< of the machine
  ByteCount data;     ///< of it not zero
  ByteCount devices;  ///< state of the devices
  ByteCount pack;     ///< size of the file
  std::chrono::milliseconds downtime{};
};

/// On an error the machine runs on as before, and there is no new file. Errors: as Qmp::connect and execute;
/// unsupported (a machine that could not be restored; says why), and those of writing a pack.
Result<SaveResult> save(const SaveOptions& options);

}  // namespace uffda::qemu
