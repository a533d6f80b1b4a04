//! Folders and messages that are not what they should be.

use crate::group::{Group, block_on, remove, tokio_timeout};
use tidemill_proto::raft::{Envelope, Header, ProposeRequest, raft_client::RaftClient};
use tidemill_raft::StartError;
use tonic::transport::Endpoint;

#[test]
fn a_wiped_node_is_not_the_one_it_was() {
    let mut group = Group::founded(3);
    group.create(1, "a");
    for wiped in [group.follower(), group.leader()] {
        group.kill(wiped);
        let data = group.folder.path().join(format!("n{wiped}"));
        let kept = group.folder.path().join("kept");
        std::fs::rename(&data, &kept).unwrap();
        let catalog = group.start(wiped);
        let error = block_on(tokio_timeout(catalog.wait_founded())).unwrap_err();
        let StartError::Replaced { instance, known, .. } = &error else {
            panic!("{error}")
        };
        assert_ne!(instance.to_string(), known.to_string());
        let text = error.to_string();
        assert!(
            text.contains("wiped node is a new node") && text.contains(&format!("'n{wiped}'")),
            "{text}"
        );
        drop(catalog);
        group.kill(wiped);
        // With its own folder it is itself again.
        remove(&data);
        std::fs::rename(&kept, &data).unwrap();
        group.start(wiped);
        group.create(wiped, &format!("back{wiped}"));
        group.same_everywhere();
    }
}

#[test]
fn a_folder_of_another_node_or_cluster_is_refused() {
    let mut group = Group::founded(1);
    group.stop(1);
    group.cluster = "other".into();
    let Err(error) = group.try_start(1) else {
        panic!("started")
    };
    let StartError::ForeignFolder {
        found_cluster, cluster, ..
    } = &error
    else {
        panic!("{error}")
    };
    assert_eq!((&**found_cluster, cluster.as_str()), ("test", "other"));
    let folder = group.folder.path().join("n1").display().to_string();
    assert!(error.to_string().contains(&folder), "{error}");
    group.cluster = "test".into();
    std::fs::remove_file(group.folder.path().join("n1/identity.json")).unwrap();
    let Err(error) = group.try_start(1) else {
        panic!("started")
    };
    assert!(matches!(error, StartError::LostIdentity { .. }), "{error}");
}

#[test]
fn a_folder_that_lost_its_log_is_refused() {
    let mut group = Group::founded(3);
    let number = group.follower();
    group.create(number, "a");
    group.stop(number);
    let data = group.folder.path().join(format!("n{number}"));
    remove(&data.join("raft-log"));
    let Err(error) = group.try_start(number) else {
        panic!("started without its log")
    };
    assert!(matches!(error, StartError::LostLog { .. }), "{error}");
    // Not even when the catalog is gone with it.
    remove(&data.join("raft-log"));
    remove(&data.join("catalog"));
    let Err(error) = group.try_start(number) else {
        panic!("started without its data")
    };
    assert!(matches!(error, StartError::LostLog { .. }), "{error}");
}

#[test]
fn a_message_for_another_folder_is_not_taken() {
    let group = Group::founded(2);
    let (one, two) = (
        group.catalog(1).instance().to_string(),
        group.catalog(2).instance().to_string(),
    );
    let right = Header {
        cluster: "test".into(),
        from_node: 1,
        from_instance: one.clone(),
        to_node: 2,
        to_instance: two.clone(),
    };
    let wrong = [
        (
            Header {
                cluster: "other".into(),
                ..right.clone()
            },
            "belongs to cluster 'test'",
        ),
        (
            Header {
                to_instance: one.clone(),
                ..right.clone()
            },
            "the message is for node 2",
        ),
        (
            Header {
                to_node: 3,
                ..right.clone()
            },
            "the message is for node 3",
        ),
        (
            Header {
                from_instance: two,
                ..right.clone()
            },
            "node 1 is known with data folder",
        ),
    ];
    let address = format!("http://{}", group.members[1].raft_addr);
    group.running[&1].runtime.block_on(async {
        let mut client = RaftClient::new(Endpoint::from_shared(address).unwrap().connect_lazy());
        for (header, reason) in wrong {
            let envelope = Envelope {
                header: Some(header.clone()),
                body: vec![0xc0].into(),
            };
            let status = client.vote(envelope.clone()).await.unwrap_err();
            assert_eq!(status.code(), tonic::Code::FailedPrecondition);
            assert!(status.message().contains(reason), "{status}");
            assert_eq!(
                client.append(envelope).await.unwrap_err().code(),
                tonic::Code::FailedPrecondition
            );
            let propose = ProposeRequest {
                header: Some(header),
                proposal: vec![].into(),
                timeout_ms: 1000,
            };
            assert_eq!(
                client.propose(propose).await.unwrap_err().code(),
                tonic::Code::FailedPrecondition
            );
        }
        // The right one comes as far as the content.
        let envelope = Envelope {
            header: Some(right),
            body: vec![0xc0].into(),
        };
        assert_eq!(
            client.vote(envelope).await.unwrap_err().code(),
            tonic::Code::InvalidArgument
        );
    });
}
