// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Flows of one family, FAMILY (4 or 6): included once for each. A record of IPv4 is half as long, and so is the time to find it.

// The addresses and ports of a packet, in network order.
struct F(ends) {
	F(address) from;
	F(address) to;
	__u16 from_port;
	__u16 to_port;
};

// One direction of a flow, as its packets enter the router. From, to, and ports with the link are each written as a whole, as
// they are read: a word that was written in parts makes the processor wait.
struct F(key) {
	struct F(ends) ends;
	__u32 link;
	__u32 proto;
};

// What becomes of them.
struct F(flow) {
	struct F(key) own;   // whose entry this is: the kernel gives the memory of a removed one to the next at once
	struct F(ends) ends; // as they leave
	struct track track;
};

// The packet that is on its way through the filter on this processor.
struct F(noted) {
	struct F(key) key;
	__u32 mark;
};

struct {
	NUMBER(type, BPF_MAP_TYPE_HASH);
	NUMBER(max_entries, DIRECTIONS);
	NUMBER(map_flags, BPF_F_NO_PREALLOC);
	FIELD(key, struct F(key));
	FIELD(value, struct F(flow));
} F(moat_flows) SECTION(".maps");

struct {
	NUMBER(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	NUMBER(max_entries, 1);
	FIELD(key, __u32);
	FIELD(value, struct F(noted));
} F(moat_noted) SECTION(".maps");

// Reads a packet's head, and the link it came by, into a key; its TCP or UDP header, or null when it is none of the shortcut's.
// A TCP header is there as a whole.
INLINE void *F(read)(struct __sk_buff *skb, __u32 link, struct F(key) *key)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	void *l4 = F(head)(data + ETH_HLEN, end, &key->ends.from, &key->proto);

	if (!l4)
		return 0;
	if (key->proto == IPPROTO_TCP) {
		if (l4 + sizeof(struct tcphdr) > end)
			return 0;
	} else if (key->proto != IPPROTO_UDP || l4 + sizeof(struct udphdr) > end) {
		return 0;
	}
	*(wide *)&key->ends.from_port = WIDE(*(word *)l4, link);
	return l4;
}

INLINE int F(same_ends)(const struct F(ends) *a, const struct F(ends) *b)
{
	return F(same_two)(&a->from, &b->from) && *(const word *)&a->from_port == *(const word *)&b->from_port;
}

INLINE int F(same_key)(const struct F(key) *a, const struct F(key) *b)
{
	return *(const wide *)&a->ends.from_port == *(const wide *)&b->ends.from_port && F(same_two)(&a->ends.from, &b->ends.from) &&
	       a->proto == b->proto;
}

// The other direction of a flow whose packets leave like this.
INLINE void F(other_way)(const struct F(ends) *ends, __u32 link, __u32 proto, struct F(key) *out)
{
	out->ends.from = ends->to;
	out->ends.to = ends->from;
	out->ends.from_port = ends->to_port;
	out->ends.to_port = ends->from_port;
	out->link = link;
	out->proto = proto;
}

// What the addresses of a packet add to its sums when they are changed.
INLINE __u32 F(diff_of)(const struct F(ends) *is, const struct F(ends) *to)
{
	// from and to stand one after the other
	return sum_diff(&is->from, 2 * sizeof(is->from), &to->from, 2 * sizeof(to->from), 0);
}

// Writes the addresses and ports that a packet leaves with; false when the packet could not be written.
INLINE int F(translate)(struct __sk_buff *skb, const struct F(key) *key, const struct F(ends) *to, __u32 diff)
{
	const struct F(ends) *is = &key->ends;
	__u32 udp = key->proto == IPPROTO_UDP;
	__u32 sum_at = F(L4_AT) + (udp ? 6 : 16);
	__u64 zero = udp ? BPF_F_MARK_MANGLED_0 : 0;

	if (!F(same_two)(&is->from, &to->from)) {
		// Written where they stand: the kernel sees to it before this program that they may be.
		void *data = (void *)(long)skb->data;
		IP_HEADER *ip = data + ETH_HLEN;

		if ((void *)(ip + 1) > (void *)(long)skb->data_end)
			return 0;
		F(readdress)(ip, &to->from, diff);
		if (l4_sum(skb, sum_at, 0, diff, BPF_F_PSEUDO_HDR | zero))
			return 0;
	}
	if (*(const word *)&is->from_port != *(const word *)&to->from_port) {
		__u16 ports[2] = {to->from_port, to->to_port};
		if (l4_sum(skb, sum_at, is->from_port, to->from_port, zero | 2))
			return 0;
		if (l4_sum(skb, sum_at, is->to_port, to->to_port, zero | 2))
			return 0;
		if (store(skb, F(L4_AT), ports, 4, 0))
			return 0;
	}
	return 1;
}

// Follows the end of a TCP connection; true when nothing more belongs to it.
INLINE int F(has_ended)(struct __sk_buff *skb, struct F(flow) *flow, const struct F(key) *back, const struct tcphdr *tcp)
{
	struct F(flow) *other;

	if (tcp->rst)
		return 1;
	if (tcp->fin) {
		__u32 heads = F(L4_AT) + tcp->doff * 4;
		__sync_fetch_and_or(&flow->track.state, OWN_FIN);
		other = lookup(&F(moat_flows), back);
		if (other) {
			other->track.fin = swap32(tcp->seq) + (skb->len > heads ? skb->len - heads : 0) + 1;
			__sync_fetch_and_or(&other->track.state, OTHER_FIN);
		}
	}
	if ((flow->track.state & (OTHER_FIN | FIN_KNOWN)) == OTHER_FIN && tcp->ack &&
	    (__s32)(swap32(tcp->ack_seq) - flow->track.fin) >= 0)
		__sync_fetch_and_or(&flow->track.state, FIN_KNOWN);
	if (flow->track.state & FIN_KNOWN) {
		other = lookup(&F(moat_flows), back);
		return !other || (other->track.state & FIN_KNOWN);
	}
	return 0;
}

// Marks a packet that may open a flow, on its way to the filter.
INLINE void F(note)(struct __sk_buff *skb, const struct F(key) *key)
{
	__u32 zero = 0;
	struct F(noted) *noted = lookup(&F(moat_noted), &zero);
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

INLINE int F(enter)(struct __sk_buff *skb)
{
	struct F(key) key __attribute__((aligned(8))), back __attribute__((aligned(8)));
	struct F(ends) leaves __attribute__((aligned(8)));
	struct F(flow) *flow;
	__u32 now, tick, link, diff, flags = 0;
	void *l4 = F(read)(skb, skb->ifindex, &key);

	if (!l4)
		return TC_ACT_OK;
	if (key.proto == IPPROTO_TCP) {
		flags = ((__u8 *)l4)[13];
		if ((flags & (SYN | ACK)) == SYN) {
			F(note)(skb, &key);
			return TC_ACT_OK;
		}
	}
	flow = lookup(&F(moat_flows), &key);
	if (!flow) {
		if (key.proto == IPPROTO_UDP)
			F(note)(skb, &key);
		return TC_ACT_OK;
	}
	tick = tick_now();
	leaves = flow->ends;
	diff = flow->track.diff;
	link = flow->track.link;
	// Another processor may have removed this entry and made another of it while it was read: what is written first is
	// compared last.
	__asm__ volatile("" ::: "memory");
	if (!F(same_key)(&flow->own, &key))
		return TC_ACT_OK;
	if (flow->track.tick != tick) {
		now = seconds();
		if (is_old(&flow->track, key.proto, now)) {
			if (key.proto == IPPROTO_UDP)
				F(note)(skb, &key);
			return TC_ACT_OK;
		}
		flow->track.seen = now;
		flow->track.tick = tick;
		if (key.proto == IPPROTO_UDP && now - flow->track.told >= TELL) {
			flow->track.told = now;
			return TC_ACT_OK;
		}
	}
	if (!(flow->track.state & ANSWERED))
		__sync_fetch_and_or(&flow->track.state, ANSWERED);
	if (key.proto == IPPROTO_TCP && ((flags & (RST | FIN)) || (flow->track.state & (OTHER_FIN | OWN_FIN)))) {
		F(other_way)(&leaves, link, key.proto, &back);
		if (F(has_ended)(skb, flow, &back, l4)) {
			delete(&F(moat_flows), &key);
			delete(&F(moat_flows), &back);
		}
	}
	if (!F(translate)(skb, &key, &leaves, diff))
		return TC_ACT_SHOT;
	count(TAKEN);
	return redirect_peer(link, 0);
}

// A port that makes the way back unmistakable, when another flow of the same two ends uses the packet's own; 0 when none was
// found.
INLINE __u16 F(free_port)(struct F(key) *back)
{
#pragma unroll
	for (int i = 0; i < 8; i++) {
		__u16 port = swap16(1024 + random32() % 64512);
		back->ends.to_port = port;
		if (!lookup(&F(moat_flows), back))
			return port;
	}
	return 0;
}

INLINE int F(leave)(struct __sk_buff *skb)
{
	struct F(key) packet, back;
	struct F(flow) there, reply, *found;
	struct F(noted) *noted;
	__u32 zero = 0, now;
	int translated = 0;

	noted = lookup(&F(moat_noted), &zero);
	if (!noted || noted->mark != skb->tc_index || !noted->key.link || noted->key.link != skb->ingress_ifindex)
		return TC_ACT_OK;
	if (!F(read)(skb, skb->ifindex, &packet) || packet.proto != noted->key.proto)
		return TC_ACT_OK;
	now = seconds();

	__builtin_memset(&there, 0, sizeof(there));
	there.ends = packet.ends;
	there.track.link = packet.link;
	there.track.seen = now;
	there.track.told = now;
	there.track.tick = tick_now();
	there.track.state = OPENER;
	__builtin_memset(&reply, 0, sizeof(reply));
	reply.ends.from = noted->key.ends.to;
	reply.ends.to = noted->key.ends.from;
	reply.ends.from_port = noted->key.ends.to_port;
	reply.ends.to_port = noted->key.ends.from_port;
	reply.track.link = noted->key.link;
	reply.track.seen = now;
	reply.track.told = now;
	reply.track.tick = there.track.tick;

	F(other_way)(&there.ends, there.track.link, packet.proto, &back);
	found = lookup(&F(moat_flows), &back);
	if (found && !is_old(&found->track, packet.proto, now) &&
	    !(found->track.link == noted->key.link && F(same_ends)(&found->ends, &reply.ends))) {
		// The way back is another flow's: this one gets another port for its client, and keeps it when its first packet is
		// sent again.
		found = lookup(&F(moat_flows), &noted->key);
		if (found && found->track.link == there.track.link && F(same)(&found->ends.to, &there.ends.to) &&
		    F(same)(&found->ends.from, &there.ends.from) && found->ends.to_port == there.ends.to_port &&
		    found->ends.from_port != there.ends.from_port) {
			there.ends.from_port = found->ends.from_port;
			back.ends.to_port = there.ends.from_port;
		} else {
			there.ends.from_port = F(free_port)(&back);
		}
		if (!there.ends.from_port)
			return TC_ACT_SHOT;
		translated = 1;
	}
	reply.own = back;
	reply.track.diff = F(diff_of)(&back.ends, &reply.ends);
	there.own = noted->key;
	there.track.diff = F(diff_of)(&noted->key.ends, &there.ends);

	if (update(&F(moat_flows), &back, &reply, BPF_ANY)) {
		count(NO_ROOM);
		return translated ? TC_ACT_SHOT : TC_ACT_OK;
	}
	if (update(&F(moat_flows), &noted->key, &there, BPF_ANY)) {
		delete(&F(moat_flows), &back);
		count(NO_ROOM);
		return translated ? TC_ACT_SHOT : TC_ACT_OK;
	}
	noted->key.link = 0;
	count(LEARNED);
	if (translated && !F(translate)(skb, &packet, &there.ends, F(diff_of)(&packet.ends, &there.ends)))
		return TC_ACT_SHOT;
	return TC_ACT_OK;
}
