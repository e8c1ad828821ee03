/* Where this kernel keeps what: its BTF tells. */
#include <string.h>
#include "kernel/orphanview_private.h"

static const struct place {
	const char *type, *name;
} of_sock[N_OF_SOCK] = {
    [FAMILY] = {"sock_common", "skc_family"},
    [STATE] = {"sock_common", "skc_state"},
    [PEER_PORT] = {"sock_common", "skc_dport"},
    [OUR_PORT] = {"sock_common", "skc_num"},
    [PORTS] = {"sock_common", "skc_portpair"},
    [PEER4] = {"sock_common", "skc_daddr"},
    [US4] = {"sock_common", "skc_rcv_saddr"},
    [PEER6] = {"sock_common", "skc_v6_daddr"},
    [US6] = {"sock_common", "skc_v6_rcv_saddr"},
    [SOCKET] = {"sock", "sk_socket"},
    [SNDBUF] = {"sock", "sk_sndbuf"},
    [RCVBUF] = {"sock", "sk_rcvbuf"},
    [SENT] = {"sock", "tcp_rtx_queue"},
    [QUEUE] = {"sock", "sk_write_queue"},
    [MAX_WINDOW] = {"tcp_sock", "max_window"},
    [CLOCK_OFFSET] = {"tcp_sock", "tsoffset"},
    [USEC] = {"tcp_sock", "tcp_usec_ts"},
    [SND_WND] = {"tcp_sock", "snd_wnd"},
    [SND_WL1] = {"tcp_sock", "snd_wl1"},
    [WRITE_SEQ] = {"tcp_sock", "write_seq"},
    [RCV_NXT] = {"tcp_sock", "rcv_nxt"},
    [SND_NXT] = {"tcp_sock", "snd_nxt"},
    [SND_UNA] = {"tcp_sock", "snd_una"},
    [RCV_WND] = {"tcp_sock", "rcv_wnd"},
    [RCV_WUP] = {"tcp_sock", "rcv_wup"},
    [OPTIONS] = {"tcp_sock", "rx_opt"},
};
static const struct place of_rest[N_OF_REST] = {
    [TIMESTAMPS] = {"tcp_options_received", "tstamp_ok"},
    [WSCALE] = {"tcp_options_received", "wscale_ok"},
    [SACK] = {"tcp_options_received", "sack_ok"},
    [SND_WSCALE] = {"tcp_options_received", "snd_wscale"},
    [RCV_WSCALE] = {"tcp_options_received", "rcv_wscale"},
    [MSS] = {"tcp_options_received", "mss_clamp"},
    [NEXT] = {"sk_buff", "next"},
    [NODE] = {"sk_buff", "rbnode"},
    [CONTROL] = {"sk_buff", "cb"},
    [LEN] = {"sk_buff", "len"},
    [PAGED_LEN] = {"sk_buff", "data_len"},
    [END] = {"sk_buff", "end"},
    [HEAD] = {"sk_buff", "head"},
    [DATA] = {"sk_buff", "data"},
    [LEFT] = {"rb_node", "rb_left"},
    [RIGHT] = {"rb_node", "rb_right"},
    [SEQ] = {"tcp_skb_cb", "seq"},
    [END_SEQ] = {"tcp_skb_cb", "end_seq"},
    [FLAGS] = {"tcp_skb_cb", "tcp_flags"},
    [N_FRAGS] = {"skb_shared_info", "nr_frags"},
    [FRAG_LIST] = {"skb_shared_info", "frag_list"},
    [FRAGS] = {"skb_shared_info", "frags"},
    [FRAG_PAGE] = {"skb_frag", "netmem"},
    [FRAG_LEN] = {"skb_frag", "len"},
    [FRAG_OFFSET] = {"skb_frag", "offset"},
};

static const char *const sized[N_SIZES] = {
    [SOCK] = "tcp_sock",
    [SEGMENT] = "sk_buff",
    [SHARED] = "skb_shared_info",
    [FRAG] = "skb_frag",
};

uint64_t orphan_bits(const uint8_t *p, uint32_t bit, unsigned int n)
{
	uint64_t value = 0;

	if (bit % 8 == 0) {
		memcpy(&value, p + bit / 8, n / 8);
		if (n >= 8)
			return value;
	}
	value = 0;
	for (unsigned int i = 0; i < n; i++)
		value |= (uint64_t)(p[(bit + i) / 8] >> (bit + i) % 8 & 1) << i;
	return value;
}

int orphan_find_all(struct orphanview *v, const struct btf *btf, struct cr_err *err)
{
	int r = 0;

	for (int i = 0; i < N_OF_SOCK && !r; i++)
		r = bpf_find_bits(btf, of_sock[i].type, of_sock[i].name, &v->sock[i], err);
	for (int i = 0; i < N_OF_REST && !r; i++)
		r = bpf_find_bits(btf, of_rest[i].type, of_rest[i].name, &v->rest[i], err);
	for (int i = 0; i < N_SIZES && !r; i++) {
		int id = btf__find_by_name_kind(btf, sized[i], BTF_KIND_STRUCT);
		const struct btf_type *t = id > 0 ? btf__type_by_id(btf, (uint32_t)id) : NULL;

		v->size[i] = t ? t->size : 0;
		if (!v->size[i] || v->size[i] > ORPHAN_SOCK_MAX)
			r = cr_err_set(err, CR_ERR_KERNEL, ENOTSUP,
				       "this kernel's struct %s has an unknown size", sized[i]);
	}
	return r;
}
