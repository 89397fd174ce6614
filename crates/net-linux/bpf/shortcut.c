// SPDX-License-Identifier: MIT OR Apache-2.0
//
// The shortcut: packets of flows that the filter let open go from link to link.
//
// `moat_in` runs where a packet of an instance enters the router, `moat_out` where one leaves for an instance. The first
// packet of a flow takes the router's whole path, its filter and its address translation; what came out at the other end
// is learned, both ways. Later packets of that flow are handed to the other end at once.
//
// Nothing is decided here: no entry, no shortcut. Entries are made only for a packet that went in by one link and came
// out at another within one run through the filter, and are removed by who changes the policy. Whatever is not an
// unfragmented TCP or UDP packet without options takes the router's path.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#define SECTION(name) __attribute__((section(name), used))
#define INLINE static __attribute__((always_inline)) inline
#define FIELD(name, value) value *name
#define NUMBER(name, value) int(*name)[value]

#define swap16(value) __builtin_bswap16(value)
#define swap32(value) __builtin_bswap32(value)

static void *(*const lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*const update)(void *map, const void *key, const void *value, __u64 flags) = (void *)BPF_FUNC_map_update_elem;
static long (*const delete)(void *map, const void *key) = (void *)BPF_FUNC_map_delete_elem;
static __u64 (*const now_coarse)(void) = (void *)BPF_FUNC_ktime_get_coarse_ns;
static __u64 (*const ticks)(void) = (void *)BPF_FUNC_jiffies64;
static __u32 (*const random32)(void) = (void *)BPF_FUNC_get_prandom_u32;
static long (*const store)(void *skb, __u32 at, const void *from, __u32 len, __u64 flags) = (void *)BPF_FUNC_skb_store_bytes;
static long (*const l4_sum)(void *skb, __u32 at, __u64 from, __u64 to, __u64 flags) = (void *)BPF_FUNC_l4_csum_replace;
static __s64 (*const sum_diff)(const void *from, __u32 from_len, const void *to, __u32 to_len, __u32 seed) = (void *)BPF_FUNC_csum_diff;
static long (*const redirect_peer)(__u32 link, __u64 flags) = (void *)BPF_FUNC_redirect_peer;

// Limits are the build script's: DIRECTIONS that are remembered of each family (two for each flow; what does not fit takes
// the router's path), seconds without a packet after which a direction is forgotten (the kernel's own for known flows), and
// TELL, the seconds after which a datagram takes the router's path again, so that the router does not forget the flow.

// What is known of one direction of a flow beside its ends.
struct track {
	__u32 link;  // the router's end of the link its packets leave by
	__u32 seen;  // seconds of the monotonic clock, as of the last tick in which a packet came
	__u32 told;  // when a datagram last took the router's path
	__u32 state;
	__u32 fin;   // TCP: the number that acknowledges the other end's FIN
	__u32 tick;  // which one that was: the clock is asked once in a tick, for it costs as much as the rest
	__u32 diff;  // what the addresses they leave with add to the sums of a packet
};

#define OPENER 1     // of the end that opened the flow
#define ANSWERED 2   // a packet after the first was seen
#define OTHER_FIN 4  // the other end sent its FIN
#define FIN_KNOWN 8  // and this end acknowledged it
#define OWN_FIN 16   // this end sent its FIN

// Packets that took the shortcut, flows learned, flows that found no room.
enum { TAKEN, LEARNED, NO_ROOM, COUNTERS };

struct {
	NUMBER(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	NUMBER(max_entries, COUNTERS);
	FIELD(key, __u32);
	FIELD(value, __u64);
} moat_counts SECTION(".maps");

INLINE void count(__u32 which)
{
	__u64 *slot = lookup(&moat_counts, &which);
	if (slot)
		(*slot)++;
}

INLINE __u32 seconds(void)
{
	return now_coarse() / 1000000000;
}

// A count of what takes 0.26 to 2.6 seconds, as fast as the kernel's timer runs; it costs next to nothing.
INLINE __u32 tick_now(void)
{
	return ticks() >> 8;
}

// Seconds that a direction may be without a packet.
INLINE __u32 limit_of(const struct track *track, __u32 proto)
{
	if (proto == IPPROTO_UDP)
		return UDP_LIMIT;
	if (!(track->state & ANSWERED))
		return TCP_OPENING_LIMIT;
	return track->state & (OTHER_FIN | OWN_FIN) ? TCP_CLOSING_LIMIT : TCP_OPEN_LIMIT;
}

INLINE int is_old(const struct track *track, __u32 proto, __u32 now)
{
	return now - track->seen > limit_of(track, proto);
}

// An address in network order.
typedef __u32 address4;
typedef struct {
	__u32 words[4];
} address6;

// Words of any record.
typedef __u32 __attribute__((may_alias)) word;
typedef __u64 __attribute__((may_alias, aligned(4))) wide;

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define WIDE(first, second) ((__u64)(second) << 32 | (__u32)(first))
#else
#define WIDE(first, second) ((__u64)(first) << 32 | (__u32)(second))
#endif

INLINE int same4(const address4 *a, const address4 *b)
{
	return *a == *b;
}

INLINE int same6(const address6 *a, const address6 *b)
{
	const wide *x = (const wide *)a, *y = (const wide *)b;

	return x[0] == y[0] && x[1] == y[1];
}

// Of two addresses that stand one after the other.
INLINE int same_two4(const address4 *a, const address4 *b)
{
	return *(const wide *)a == *(const wide *)b;
}

INLINE int same_two6(const address6 *a, const address6 *b)
{
	return same6(a, b) && same6(a + 1, b + 1);
}

INLINE void *head4(struct iphdr *ip, void *end, address4 *ends, __u32 *proto)
{
	if ((void *)(ip + 1) > end || *(__u8 *)ip != 0x45 || (ip->frag_off & swap16(0x3fff)))
		return 0;
	*(wide *)ends = WIDE(ip->saddr, ip->daddr);
	*proto = ip->protocol;
	return ip + 1;
}

INLINE void *head6(struct ipv6hdr *ip, void *end, address6 *ends, __u32 *proto)
{
	const word *words = (const word *)&ip->saddr;
	wide *to = (wide *)ends;

	if ((void *)(ip + 1) > end || ip->version != 6)
		return 0;
	to[0] = WIDE(words[0], words[1]);
	to[1] = WIDE(words[2], words[3]);
	to[2] = WIDE(words[4], words[5]);
	to[3] = WIDE(words[6], words[7]);
	*proto = ip->nexthdr;
	return ip + 1;
}

// Writes both addresses; `diff` is what they add to sums.
INLINE void readdress4(struct iphdr *ip, const address4 *ends, __u32 diff)
{
	__u32 sum = (__u16)~ip->check;

	sum += (diff & 0xffff) + (diff >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	ip->check = ~sum;
	ip->saddr = ends[0];
	ip->daddr = ends[1];
}

INLINE void readdress6(struct ipv6hdr *ip, const address6 *ends, __u32 diff)
{
	// IPv6 has no sum of its header.
	(void)diff;
	__builtin_memcpy(&ip->saddr, ends, 32);
}

// The first flags of a TCP header, as they stand in its byte 13.
#define FIN 1
#define SYN 2
#define RST 4
#define ACK 16

// Where the header of TCP or UDP stands.
#define L4_AT4 (ETH_HLEN + sizeof(struct iphdr))
#define L4_AT6 (ETH_HLEN + sizeof(struct ipv6hdr))

#define PASTE(a, b) a##b
#define PASTED(a, b) PASTE(a, b)
#define F(name) PASTED(name, FAMILY)

#define FAMILY 4
#define IP_HEADER struct iphdr
#include "family.h"
#undef FAMILY
#undef IP_HEADER

#define FAMILY 6
#define IP_HEADER struct ipv6hdr
#include "family.h"
#undef FAMILY
#undef IP_HEADER

// The protocol of an untagged packet; 0 when it is none of the shortcut's.
INLINE __u16 protocol(struct __sk_buff *skb)
{
	struct ethhdr *eth = (void *)(long)skb->data;

	if ((void *)(eth + 1) > (void *)(long)skb->data_end || skb->vlan_present)
		return 0;
	return eth->h_proto;
}

SECTION("classifier/in")
int moat_in(struct __sk_buff *skb)
{
	__u16 proto = protocol(skb);

	// What the sender's side left there is no mark.
	skb->tc_classid = 0;
	if (skb->pkt_type)
		return TC_ACT_OK;
	if (proto == swap16(ETH_P_IP))
		return enter4(skb);
	if (proto == swap16(ETH_P_IPV6))
		return enter6(skb);
	return TC_ACT_OK;
}

SECTION("classifier/out")
int moat_out(struct __sk_buff *skb)
{
	__u16 proto;

	if (!skb->tc_index)
		return TC_ACT_OK;
	proto = protocol(skb);
	if (proto == swap16(ETH_P_IP))
		return leave4(skb);
	if (proto == swap16(ETH_P_IPV6))
		return leave6(skb);
	return TC_ACT_OK;
}

// Helpers of the kernel that only its licence opens.
char licence[] SECTION("license") = "Dual MIT/GPL";
