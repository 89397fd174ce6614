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

// Limits are the build script's: DIRECTIONS that are remembered (two for each flow; what does not fit takes the router's
// path), seconds without a packet after which a direction is forgotten (the kernel's own for known flows), and TELL, the
// seconds after which a datagram takes the router's path again, so that the router does not forget the flow.

// The addresses and ports of a packet, in network order; an IPv4 address fills the first word.
struct ends {
	__u32 from[4];
	__u32 to[4];
	__u16 from_port;
	__u16 to_port;
};

// One direction of a flow, as its packets enter the router.
struct key {
	struct ends ends;
	__u32 link;
	__u32 proto;
};

// What becomes of them.
struct flow {
	struct key own;   // whose entry this is: the kernel gives the memory of a removed one to the next at once
	struct ends ends; // as they leave
	__u32 link;       // the router's end of the link they leave by
	__u32 seen;       // seconds of the monotonic clock, as of the last tick in which a packet came
	__u32 told;       // when a datagram last took the router's path
	__u32 state;
	__u32 fin; // TCP: the number that acknowledges the other end's FIN
	__u32 tick; // which one that was: the clock is asked once in a tick, for it costs as much as the rest
	__u32 diff; // what the addresses they leave with add to the sums of an IPv4 packet
};

#define OPENER 1     // of the end that opened the flow
#define ANSWERED 2   // a packet after the first was seen
#define OTHER_FIN 4  // the other end sent its FIN
#define FIN_KNOWN 8  // and this end acknowledged it
#define OWN_FIN 16   // this end sent its FIN

// The packet that is on its way through the filter on this processor.
struct noted {
	struct key key;
	__u32 mark;
};

struct {
	NUMBER(type, BPF_MAP_TYPE_HASH);
	NUMBER(max_entries, DIRECTIONS);
	NUMBER(map_flags, BPF_F_NO_PREALLOC);
	FIELD(key, struct key);
	FIELD(value, struct flow);
} moat_flows SECTION(".maps");

struct {
	NUMBER(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	NUMBER(max_entries, 1);
	FIELD(key, __u32);
	FIELD(value, struct noted);
} moat_noted SECTION(".maps");

// Packets that took the shortcut, flows learned, flows that found no room.
enum { TAKEN, LEARNED, NO_ROOM, COUNTERS };

struct {
	NUMBER(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	NUMBER(max_entries, COUNTERS);
	FIELD(key, __u32);
	FIELD(value, __u64);
} moat_counts SECTION(".maps");

struct packet {
	struct ends ends;
	__u32 proto;
	__u32 l4; // where the TCP or UDP header is
	__u32 v6;
	__u32 sum; // of the IPv4 header
	// TCP only
	__u32 syn, fin, rst, ack;
	__u32 number, acknowledges, next;
};

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

// Reads a packet's head; false when it is none of the shortcut's.
INLINE int read_packet(struct __sk_buff *skb, struct packet *out)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	void *l4;

	__builtin_memset(out, 0, sizeof(*out));
	if ((void *)(eth + 1) > end || skb->vlan_present)
		return 0;
	if (eth->h_proto == swap16(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);
		if ((void *)(ip + 1) > end || ip->ihl != 5 || ip->version != 4 || (ip->frag_off & swap16(0x3fff)))
			return 0;
		out->proto = ip->protocol;
		out->sum = ip->check;
		out->ends.from[0] = ip->saddr;
		out->ends.to[0] = ip->daddr;
		l4 = ip + 1;
		out->l4 = ETH_HLEN + sizeof(*ip);
	} else if (eth->h_proto == swap16(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(eth + 1);
		if ((void *)(ip + 1) > end || ip->version != 6)
			return 0;
		out->proto = ip->nexthdr;
		__builtin_memcpy(out->ends.from, &ip->saddr, 16);
		__builtin_memcpy(out->ends.to, &ip->daddr, 16);
		out->v6 = 1;
		l4 = ip + 1;
		out->l4 = ETH_HLEN + sizeof(*ip);
	} else {
		return 0;
	}
	if (out->proto == IPPROTO_TCP) {
		struct tcphdr *tcp = l4;
		__u32 heads;
		if ((void *)(tcp + 1) > end)
			return 0;
		out->ends.from_port = tcp->source;
		out->ends.to_port = tcp->dest;
		out->syn = tcp->syn;
		out->fin = tcp->fin;
		out->rst = tcp->rst;
		out->ack = tcp->ack;
		out->number = swap32(tcp->seq);
		out->acknowledges = swap32(tcp->ack_seq);
		heads = out->l4 + tcp->doff * 4;
		out->next = out->number + (skb->len > heads ? skb->len - heads : 0) + tcp->fin;
		return 1;
	}
	if (out->proto == IPPROTO_UDP) {
		struct udphdr *udp = l4;
		if ((void *)(udp + 1) > end)
			return 0;
		out->ends.from_port = udp->source;
		out->ends.to_port = udp->dest;
		return 1;
	}
	return 0;
}

INLINE int same(const __u32 *a, const __u32 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

INLINE int same_ends(const struct ends *a, const struct ends *b)
{
	return same(a->from, b->from) && same(a->to, b->to) && a->from_port == b->from_port && a->to_port == b->to_port;
}

// The other direction of a flow whose packets leave like this.
INLINE void other_way(const struct ends *ends, __u32 link, __u32 proto, struct key *out)
{
	__builtin_memcpy(out->ends.from, ends->to, 16);
	__builtin_memcpy(out->ends.to, ends->from, 16);
	out->ends.from_port = ends->to_port;
	out->ends.to_port = ends->from_port;
	out->link = link;
	out->proto = proto;
}

// Seconds that a direction may be without a packet.
INLINE __u32 limit_of(const struct flow *flow, __u32 proto)
{
	if (proto == IPPROTO_UDP)
		return UDP_LIMIT;
	if (!(flow->state & ANSWERED))
		return TCP_OPENING_LIMIT;
	return flow->state & (OTHER_FIN | OWN_FIN) ? TCP_CLOSING_LIMIT : TCP_OPEN_LIMIT;
}

INLINE int is_old(const struct flow *flow, __u32 proto, __u32 now)
{
	return now - flow->seen > limit_of(flow, proto);
}

// What the addresses of an IPv4 packet add to its sums when they are changed.
INLINE __u32 diff_of(const struct ends *is, const struct ends *to)
{
	__u32 old[2] = {is->from[0], is->to[0]}, new[2] = {to->from[0], to->to[0]};

	return sum_diff(old, 8, new, 8, 0);
}

// Writes the addresses and ports that a packet leaves with; false when the packet could not be written.
INLINE int translate(struct __sk_buff *skb, const struct packet *packet, const struct ends *to, __u32 diff)
{
	const struct ends *is = &packet->ends;
	__u32 udp = packet->proto == IPPROTO_UDP;
	__u32 sum_at = packet->l4 + (udp ? 6 : 16);
	__u64 zero = udp ? BPF_F_MARK_MANGLED_0 : 0;

	if (packet->v6) {
		if (!same(is->from, to->from) || !same(is->to, to->to)) {
			// from and to stand one after the other
			__s64 diff6 = sum_diff(is->from, 32, to->from, 32, 0);
			if (l4_sum(skb, sum_at, 0, diff6, BPF_F_PSEUDO_HDR | zero))
				return 0;
			if (store(skb, ETH_HLEN + 8, to->from, 32, 0))
				return 0;
		}
	} else if (is->from[0] != to->from[0] || is->to[0] != to->to[0]) {
		// The sum of the header and the addresses stand one after the other.
		struct {
			__u16 sum;
			__u16 words[4];
		} head;
		__u32 sum = (__u16)~packet->sum;

		sum += (diff & 0xffff) + (diff >> 16);
		sum = (sum & 0xffff) + (sum >> 16);
		sum = (sum & 0xffff) + (sum >> 16);
		head.sum = ~sum;
		__builtin_memcpy(&head.words[0], &to->from[0], 4);
		__builtin_memcpy(&head.words[2], &to->to[0], 4);
		if (store(skb, ETH_HLEN + 10, &head, 10, 0))
			return 0;
		if (l4_sum(skb, sum_at, 0, diff, BPF_F_PSEUDO_HDR | zero))
			return 0;
	}
	if (is->from_port != to->from_port || is->to_port != to->to_port) {
		__u16 ports[2] = {to->from_port, to->to_port};
		if (l4_sum(skb, sum_at, is->from_port, to->from_port, zero | 2))
			return 0;
		if (l4_sum(skb, sum_at, is->to_port, to->to_port, zero | 2))
			return 0;
		if (store(skb, packet->l4, ports, 4, 0))
			return 0;
	}
	return 1;
}

// Follows the end of a TCP connection; true when nothing more belongs to it.
INLINE int has_ended(struct flow *flow, const struct key *back, const struct packet *packet)
{
	struct flow *other;

	if (packet->rst)
		return 1;
	if (packet->fin) {
		__sync_fetch_and_or(&flow->state, OWN_FIN);
		other = lookup(&moat_flows, back);
		if (other) {
			other->fin = packet->next;
			__sync_fetch_and_or(&other->state, OTHER_FIN);
		}
	}
	if ((flow->state & (OTHER_FIN | FIN_KNOWN)) == OTHER_FIN && packet->ack && (__s32)(packet->acknowledges - flow->fin) >= 0)
		__sync_fetch_and_or(&flow->state, FIN_KNOWN);
	if (flow->state & FIN_KNOWN) {
		other = lookup(&moat_flows, back);
		return !other || (other->state & FIN_KNOWN);
	}
	return 0;
}

// Marks a packet that may open a flow, on its way to the filter.
INLINE void note(struct __sk_buff *skb, const struct key *key)
{
	__u32 zero = 0;
	struct noted *noted = lookup(&moat_noted, &zero);
	__u16 mark;

	if (!noted)
		return;
	mark = noted->mark + 1;
	if (!mark)
		mark = 1;
	noted->mark = mark;
	noted->key = *key;
	// The kernel keeps it in `tc_index` until the packet leaves.
	skb->tc_classid = mark;
}

SECTION("classifier/in")
int moat_in(struct __sk_buff *skb)
{
	struct packet packet;
	struct key key, back;
	struct ends leaves;
	struct flow *flow;
	__u32 now, tick, link, diff;

	if (skb->pkt_type || !read_packet(skb, &packet))
		return TC_ACT_OK;
	key.ends = packet.ends;
	key.link = skb->ifindex;
	key.proto = packet.proto;
	if (packet.syn && !packet.ack) {
		note(skb, &key);
		return TC_ACT_OK;
	}
	flow = lookup(&moat_flows, &key);
	if (!flow) {
		if (packet.proto == IPPROTO_UDP)
			note(skb, &key);
		return TC_ACT_OK;
	}
	tick = tick_now();
	leaves = flow->ends;
	diff = flow->diff;
	link = flow->link;
	// Another processor may have removed this entry and made another of it while it was read: what is written first is
	// compared last.
	__asm__ volatile("" ::: "memory");
	if (flow->own.link != key.link || flow->own.proto != key.proto || !same_ends(&flow->own.ends, &key.ends))
		return TC_ACT_OK;
	if (flow->tick != tick) {
		now = seconds();
		if (is_old(flow, packet.proto, now)) {
			if (packet.proto == IPPROTO_UDP)
				note(skb, &key);
			return TC_ACT_OK;
		}
		flow->seen = now;
		flow->tick = tick;
		if (packet.proto == IPPROTO_UDP && now - flow->told >= TELL) {
			flow->told = now;
			return TC_ACT_OK;
		}
	}
	if (!(flow->state & ANSWERED))
		__sync_fetch_and_or(&flow->state, ANSWERED);
	if (packet.proto == IPPROTO_TCP && (packet.rst || packet.fin || (flow->state & (OTHER_FIN | OWN_FIN)))) {
		other_way(&leaves, link, packet.proto, &back);
		if (has_ended(flow, &back, &packet)) {
			delete(&moat_flows, &key);
			delete(&moat_flows, &back);
		}
	}
	if (!translate(skb, &packet, &leaves, diff))
		return TC_ACT_SHOT;
	count(TAKEN);
	return redirect_peer(link, 0);
}

// A port that makes the way back unmistakable, when another flow of the same two ends uses the packet's own; 0 when none was
// found.
INLINE __u16 free_port(struct key *back)
{
#pragma unroll
	for (int i = 0; i < 8; i++) {
		__u16 port = swap16(1024 + random32() % 64512);
		back->ends.to_port = port;
		if (!lookup(&moat_flows, back))
			return port;
	}
	return 0;
}

SECTION("classifier/out")
int moat_out(struct __sk_buff *skb)
{
	struct packet packet;
	struct key back;
	struct flow there, reply, *found;
	struct noted *noted;
	__u32 zero = 0, now;
	int translated = 0;

	if (!skb->tc_index)
		return TC_ACT_OK;
	noted = lookup(&moat_noted, &zero);
	if (!noted || noted->mark != skb->tc_index || !noted->key.link)
		return TC_ACT_OK;
	if (!read_packet(skb, &packet) || packet.proto != noted->key.proto)
		return TC_ACT_OK;
	now = seconds();

	__builtin_memset(&there, 0, sizeof(there));
	there.ends = packet.ends;
	there.link = skb->ifindex;
	there.seen = now;
	there.told = now;
	there.tick = tick_now();
	there.state = OPENER;
	__builtin_memset(&reply, 0, sizeof(reply));
	__builtin_memcpy(reply.ends.from, noted->key.ends.to, 16);
	__builtin_memcpy(reply.ends.to, noted->key.ends.from, 16);
	reply.ends.from_port = noted->key.ends.to_port;
	reply.ends.to_port = noted->key.ends.from_port;
	reply.link = noted->key.link;
	reply.seen = now;
	reply.told = now;
	reply.tick = there.tick;

	other_way(&there.ends, there.link, packet.proto, &back);
	found = lookup(&moat_flows, &back);
	if (found && !is_old(found, packet.proto, now) && !(found->link == noted->key.link && same_ends(&found->ends, &reply.ends))) {
		// The way back is another flow's: this one gets another port for its client, and keeps it when its first packet is
		// sent again.
		found = lookup(&moat_flows, &noted->key);
		if (found && found->link == there.link && same(found->ends.to, there.ends.to) && same(found->ends.from, there.ends.from) &&
		    found->ends.to_port == there.ends.to_port && found->ends.from_port != there.ends.from_port) {
			there.ends.from_port = found->ends.from_port;
			back.ends.to_port = there.ends.from_port;
		} else {
			there.ends.from_port = free_port(&back);
		}
		if (!there.ends.from_port)
			return TC_ACT_SHOT;
		translated = 1;
	}
	reply.own = back;
	reply.diff = diff_of(&back.ends, &reply.ends);
	there.own = noted->key;
	there.diff = diff_of(&noted->key.ends, &there.ends);

	if (update(&moat_flows, &back, &reply, BPF_ANY)) {
		count(NO_ROOM);
		return translated ? TC_ACT_SHOT : TC_ACT_OK;
	}
	if (update(&moat_flows, &noted->key, &there, BPF_ANY)) {
		delete(&moat_flows, &back);
		count(NO_ROOM);
		return translated ? TC_ACT_SHOT : TC_ACT_OK;
	}
	noted->key.link = 0;
	count(LEARNED);
	if (translated && !translate(skb, &packet, &there.ends, diff_of(&packet.ends, &there.ends)))
		return TC_ACT_SHOT;
	return TC_ACT_OK;
}

// Helpers of the kernel that only its licence opens.
char licence[] SECTION("license") = "Dual MIT/GPL";
