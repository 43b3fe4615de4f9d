//! Files as hosts have them, and what of them is lost.

use super::*;
use crate::config::Config;

fn lines(imported: &Imported) -> Vec<usize> {
    imported.left_out.iter().map(|left_out| left_out.line).collect()
}

/// What was found is valid beside a cluster's own part.
fn valid(imported: &Imported) -> String {
    let text = format!(
        "version = 1\n[cluster]\nname = \"edge-1\"\nhash_key_file = \"hash.key\"\n[[cluster.member]]\nid = 1\nname = \"lb1\"\n\
         address = \"10.9.9.9\"\nsecond_address = \"2001:db8:9::9\"\n[node]\ninterfaces = [\"eth0\"]\n{}",
        imported.to_toml()
    );
    if let Err(error) = Config::check_text(&text, std::path::Path::new("imported.toml")) {
        panic!("{error}");
    }
    text
}

const SAVED: &str = "\
-A -t 203.0.113.10:80 -s wrr
-a -t 203.0.113.10:80 -r 10.0.2.11:80 -i -w 100
-a -t 203.0.113.10:80 -r 10.0.2.12:80 -i -w 50
-A -t 203.0.113.10:443 -s wrr
-a -t 203.0.113.10:443 -r 10.0.2.11:443 -i -w 100
-a -t 203.0.113.10:443 -r 10.0.2.12:443 -i -w 50
-A -u [2001:db8::10]:53 -s sh
-a -u [2001:db8::10]:53 -r [2001:db8:2::11]:53 -i -w 1
-A -t 203.0.113.11:25 -s wlc -p 300
-a -t 203.0.113.11:25 -r 10.0.2.21:2525 -m -w 1 -x 500 -y 0
-A -f 7 -s rr
-a -f 7 -r 10.0.2.30:0 -g -w 1
";

#[test]
fn saved_rules_become_services_and_the_rest_is_named() {
    let imported = read_ipvsadm(SAVED);
    assert_eq!(lines(&imported), [9, 10, 10, 10, 11], "{:#?}", imported.left_out);
    let text = valid(&imported);
    assert_eq!(imported.services.len(), 3);
    assert!(text.contains(r#"vip = ["203.0.113.10:80/tcp", "203.0.113.10:443/tcp"]"#), "{text}");
    assert!(text.contains(r#"{ name = "10.0.2.12", address = "10.0.2.12", weight = 50 },"#), "{text}");
    assert!(text.contains("name = \"2001-db8--10-53-udp\"") && text.contains(r#""[2001:db8::10]:53/udp""#), "{text}");
    assert_eq!(imported.services.iter().map(|service| service.affinity).collect::<Vec<_>>(), [false, true, true]);
}

#[test]
fn rules_without_a_loss_leave_nothing_out() {
    let whole: String = SAVED.lines().take(8).map(|line| format!("{line}\n")).collect();
    assert_eq!(read_ipvsadm(&whole).left_out, []);
    let long = "--add-service --tcp-service 203.0.113.10:80 --scheduler=rr\n\
                --add-server --tcp-service 203.0.113.10:80 --real-server 10.0.2.11:80 --ipip --weight=5\n";
    let imported = read_ipvsadm(long);
    assert_eq!((imported.left_out.as_slice(), imported.services[0].backends[0].weight), (&[][..], 5));
}

#[test]
fn weights_and_servers_that_do_not_fit_are_named() {
    let imported = read_ipvsadm(
        "-A -t 203.0.113.10:80 -s wrr\n\
         -a -t 203.0.113.10:80 -r 10.0.2.11:80 -i -w 65535\n\
         -a -t 203.0.113.10:80 -r 10.0.2.11:81 -i -w 1\n\
         -A -t 203.0.113.11:80 -s wrr\n\
         -A -t lb.example:http -s rr\n\
         ipvsadm -S\n",
    );
    assert_eq!(lines(&imported), [0, 2, 3, 3, 5, 6], "{:#?}", imported.left_out);
    valid(&imported);
}

const KEEPALIVED: &str = r#"! The edge.
global_defs {
    router_id lb1
}

vrrp_instance VI_1 {
    state MASTER
    virtual_ipaddress {
        203.0.113.10/32 dev lo
    }
}

virtual_server 203.0.113.10 443 {
    delay_loop 6
    lb_algo wrr
    lb_kind TUN
    protocol TCP    # the default
    sorry_server 10.0.2.99 443

    real_server 10.0.2.11 443 {
        weight 3
        SSL_GET {
            url {
                path "/health-check"
                status_code 200
            }
            virtualhost www.example
            connect_timeout 3
            retry 2
        }
    }
    real_server 10.0.2.12 443 {
        inhibit_on_failure
        SSL_GET {
            url { path /
            }
            connect_timeout 3
        }
    }
}

virtual_server_group DNS {
    203.0.113.53 53
    2001:db8::53 53
    203.0.113.60-70 53
}

virtual_server group DNS {
    lb_algo lc
    lb_kind DR
    protocol UDP
    persistence_timeout 60
    real_server 10.0.2.31 53 {
        MISC_CHECK {
            misc_path "/usr/bin/dig @10.0.2.31"
        }
    }
}
"#;

#[test]
fn virtual_servers_become_services_and_the_rest_is_named() {
    let imported = read_keepalived(KEEPALIVED);
    assert_eq!(lines(&imported), [2, 6, 18, 33, 34, 45, 49, 50, 54], "{:#?}", imported.left_out);
    let text = valid(&imported);
    let health = r#"health = { type = "https", interval = "6000ms", timeout = "3000ms", fall = 3, path = "/health-check", host = "www.example", status = 200 }"#;
    assert!(text.contains(health), "{text}");
    assert!(text.contains(r#"vip = ["203.0.113.53:53/udp", "[2001:db8::53]:53/udp"]"#), "{text}");
    assert!(text.contains("affinity = \"source\""), "{text}");
    assert_eq!(imported.services[0].backends.iter().map(|backend| backend.weight).collect::<Vec<_>>(), [3, 1]);
}

#[test]
fn braces_that_do_not_match_are_named() {
    let open = read_keepalived("virtual_server 203.0.113.10 80 {\n  real_server 10.0.2.11 80 {\n");
    assert!(lines(&open).starts_with(&[1, 1, 2]), "{:?}", open.left_out);
    assert_eq!(open.services.len(), 1);
    assert_eq!(lines(&read_keepalived("}\n")), [1]);
}

proptest::proptest! {
    #[test]
    fn no_text_makes_a_reader_panic(words in proptest::collection::vec("(virtual_server|real_server|-A|-a|-t|-r|[{}!\"#]|url|group|[0-9.:]{1,12}|[a-z-]{1,8}|\n)", 0..60)) {
        let text = words.join(" ");
        read_keepalived(&text);
        read_ipvsadm(&text);
    }
}
