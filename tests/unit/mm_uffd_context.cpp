// The queue of a monitor's messages: what is delivered, in which order, and what is taken back.
#include <gtest/gtest.h>

#include <array>
#include <vector>

#include "mm/uffd_context.h"

namespace uffda {
namespace {

using Told = UffdContext::Told;

uffd_msg fault_at(std::uint64_t address, std::uint32_t thread) {
  uffd_msg message{};
  message.event = UFFD_EVENT_PAGEFAULT;
  message.arg.pagefault.address = address;
  message.arg.pagefault.feat.ptid = thread;
  return message;
}

std::vector<std::uint64_t> addresses_in(UffdContext& context) {
  std::array<uffd_msg, 8> messages{};
  const auto count = context.read(messages, Deadline::after({}));
  std::vector<std::uint64_t> addresses;
  for (std::size_t i = 0; count && i < *count; ++i) addresses.push_back(messages[i].arg.pagefault.address);
  return addresses;
}

TEST(UffdContext, AThreadThatFaultsAgainAtItsPageIsToldOnce) {
  const auto context = *UffdContext::create({UffdFeature::thread_id, UffdFeature::exact_address});
  ASSERT_TRUE(context->queue_fault(fault_at(0x5010, 7), Told::at_once));
  ASSERT_TRUE(context->queue_fault(fault_at(0x5020, 7), Told::at_once));
  ASSERT_TRUE(context->queue_fault(fault_at(0x5030, 8), Told::at_once));
  EXPECT_EQ(addresses_in(*context), (std::vector<std::uint64_t>{0x5020, 0x5030}));
}

TEST(UffdContext, AThreadThatFaultsElsewhereIsToldOfThereOnly) {
  const auto context = *UffdContext::create({UffdFeature::thread_id});
  ASSERT_TRUE(context->queue_fault(fault_at(0x1000, 7), Told::at_once));
  ASSERT_TRUE(context->queue_fault(fault_at(0x5000, 7), Told::at_once));
  EXPECT_EQ(addresses_in(*context), std::vector<std::uint64_t>{0x5000});
}

// Found by the simulator: the message of a wait that was over came late, and the thread's present wait was forgotten
// for ever.
TEST(UffdContext, AMessageThatComesLateDoesNotTakeThePlaceOfANewerOne) {
  const auto context = *UffdContext::create({UffdFeature::thread_id});
  ASSERT_TRUE(context->queue_fault(fault_at(0x5000, 7), Told::at_once));
  ASSERT_TRUE(context->queue_fault(fault_at(0x1000, 7), Told::later));
  EXPECT_EQ(addresses_in(*context), std::vector<std::uint64_t>{0x5000});
}

TEST(UffdContext, WhoIsWokenIsToldOfNoMore) {
  const auto context = *UffdContext::create({UffdFeature::thread_id});
  ASSERT_TRUE(context->queue_fault(fault_at(0x5000, 7), Told::at_once));
  ASSERT_TRUE(context->queue_fault(fault_at(0x6000, 8), Told::at_once));
  EXPECT_TRUE(context->forget_faults({0x5000}, kPageSize));
  EXPECT_FALSE(context->forget_faults({0x5000}, kPageSize));
  EXPECT_EQ(addresses_in(*context), std::vector<std::uint64_t>{0x6000});
}

}  // namespace
}  // namespace uffda
